"""Several files by one name: shell patterns, numbered ranges in braces, and the split that a file's name tells."""

from __future__ import annotations

import glob
import itertools
import re
from collections.abc import Sequence
from pathlib import Path

from spheregen.data.sources import choose_split, require_unsplit
from spheregen.errors import DataError

_SHARD = re.compile(r"(?P<split>.+?)-\d+(?:-of-\d+)?")
_KNOWN = re.compile(r"(?P<split>train|test|validation|val)(?![A-Za-z])")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST = 1_000_000  # files that one pattern may stand for


def is_pattern(name: str) -> bool:
    """Whether a name stands for several files."""
    return any(sign in name for sign in "*?[{")


def expand_braces(pattern: str) -> list[str]:
    """`{000..146}` and `{a,b}` written out, in order; numbers keep their zeros.

    Raises:
        DataError: braces do not match, a range runs backwards, or there are more than a million names.
    """
    match = _BRACES.search(pattern)
    if match is None:
        if "{" in pattern or "}" in pattern:
            raise DataError(f"{pattern}: a brace has no partner; write ranges like {{000..146}}")
        return [pattern]
    span = _RANGE.fullmatch(match[1])
    if span:
        first, last = int(span[1]), int(span[2])
        if not first <= last < first + _MOST:
            raise DataError(f"{pattern}: the range {{{match[1]}}} is empty or too long; the smaller number comes first")
        choices = [str(number).zfill(len(span[1])) for number in range(first, last + 1)]
    else:
        choices = match[1].split(",")
    rest = expand_braces(pattern[match.end() :])
    if len(choices) * len(rest) > _MOST:
        raise DataError(f"{pattern} stands for more than {_MOST} files; use fewer braces")
    return [pattern[: match.start()] + choice + end for choice, end in itertools.product(choices, rest)]


def local_matches(pattern: str) -> list[Path]:
    """The files that a pattern stands for, in order.

    Raises:
        DataError: it matches none, or a file that it writes out is missing.
    """
    found: list[Path] = []
    for name in expand_braces(str(Path(pattern).expanduser())):
        if any(sign in name for sign in "*?["):
            matches = glob.glob(name, recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
            found += sorted(Path(path) for path in matches if Path(path).is_file())
        elif Path(name).is_file():
            found.append(Path(name))
        else:
            raise DataError(f"{name} does not exist, although {pattern} names it; check the range")
    if not found:
        raise DataError(f"no file matches {pattern}; check the pattern")
    return list(dict.fromkeys(found))


def split_of(name: str) -> str | None:
    """The split that a file's name tells: "train-00000-of-00002.parquet" and "train.tar" are "train"."""
    stem = Path(name).stem
    match = _KNOWN.match(stem) or _SHARD.fullmatch(stem)
    return match["split"] if match else None


def tells_split(name: str) -> bool:
    """Whether a file's name begins with a usual split."""
    return _KNOWN.match(Path(name).stem) is not None


def choose_files(
    names: Sequence[str], split: str, where: str, *, chosen: bool, numbered_splits: bool = True
) -> tuple[str, list[int]]:
    """The split's proper name and the places of its files in `names` (base names).

    Args:
        chosen: the user named these files, so "train", which is only the default, takes them if they are all of one
            other split.
        numbered_splits: "cats-00001" is a split called cats; else only names that begin with a usual split count.

    Raises:
        DataError: there is no such split.
    """
    everything = list(range(len(names)))
    splits = [split_of(name) for name in names]
    if not numbered_splits:
        splits = [found if tells_split(name) else None for found, name in zip(splits, names, strict=True)]
    present = sorted({name for name in splits if name is not None})
    if split == "all":
        return split, everything
    if not present:
        require_unsplit(split, where)
        return split, everything
    if chosen and split == "train" and len(present) == 1 and None not in splits:
        return present[0], everything
    proper = choose_split(split, present, where)
    return proper, [place for place in everything if splits[place] == proper]
