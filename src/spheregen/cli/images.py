"""Images in and out of commands: what is read, where it may be written, single PNGs with a sheet beside them."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spheregen.cli import options as cli
from spheregen.errors import ConfigError
from spheregen.files import check_replaceable

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from spheregen.data import ImageWriter
    from spheregen.pipeline import Pipeline, PipelineOutput

SHEET_ROWS = 20  # rows of a sheet, at most
SHEET_PIXELS = 64  # small images are enlarged to about this in sheets
AT_ONCE = 64  # images that are read, changed and written together
NAMED = 400  # images of a sheet that have their class below them, at most
LONGEST_PROMPT = 60  # characters of a prompt that are shown
LONGEST_NAME = 120  # bytes of a name; with number and suffix it must be a file name


@dataclass(frozen=True)
class InputImage:
    """An image that a command was given."""

    where: str
    """Its path, or its place in an archive or data set."""
    open: Callable[[], Image.Image]

    @property
    def name(self) -> str:
        """The name of the file that is made of it: no folder, no suffix, nothing that is unusual in file names."""
        inside = re.sub(r"^.*\.(?:zip|tar) ", "", self.where, flags=re.IGNORECASE | re.DOTALL)
        return file_name(Path(inside).stem)


def file_name(text: str) -> str:
    """Return a text without signs that are unusual in file names, and not too long for one."""
    plain = re.sub(r"[^\w()+,=@-]+", "-", text)
    return plain.encode("utf-8", "replace")[:LONGEST_NAME].decode("utf-8", "ignore")


def gather(images: Sequence[str], split: str) -> list[list[InputImage]]:
    """Find the images that files, folders and data sets on a command line hold, in parts that are worked on together.

    None is read yet.
    """
    from spheregen.data import ARCHIVES, open_source, read_image

    found: list[InputImage] = []
    for given in images:
        path = Path(given)
        if os.path.isfile(given) and path.suffix.lower() not in ARCHIVES:  # noqa: PTH113 (any text is welcome)
            found.append(InputImage(given, lambda path=path: read_image(path)))  # type: ignore[misc]
            continue
        source = open_source(given, split=split)
        for i in range(len(source)):
            found.append(InputImage(source.describe(i), lambda source=source, i=i: source.read(i)))  # type: ignore[misc]
    return [found[start : start + AT_ONCE] for start in range(0, len(found), AT_ONCE)]


def output_folder(path: Path) -> Path:
    """Return `path`, if it can be a folder to write into."""
    try:
        above = next((part for part in (path, *path.parents) if part.exists()), None)
    except OSError as error:  # a name that is too long, no permission
        raise ConfigError(f"the output path {path} is impossible ({error.strerror}); choose another") from error
    if above is not None and not above.is_dir():
        raise ConfigError(f"the output path {above} is a file; choose a folder with --out")
    try:
        with tempfile.TemporaryFile(dir=above):
            pass
    except OSError as error:
        raise ConfigError(f"nothing can be written to {above} ({error.strerror}); choose another --out") from error
    return path


def output_file(path: Path, inputs: Iterable[str | Path] = (), *, suffix: str = "") -> Path:
    """Return `path`, if it can be a file to write, none of the command's inputs, and nothing of others is lost by it.

    Args:
        suffix: what its name must end with, such as `.png`.
    """
    if suffix and path.suffix.lower() != suffix:
        raise ConfigError(f"{path} cannot be the output: give --out a name that ends in {suffix}")
    output_folder(path.parent)
    try:
        if path.is_dir():
            raise ConfigError(f"the output path {path} is a folder; choose another file name with --out")
        for given in inputs:
            if Path(given).name == path.name and path.exists() and path.samefile(given):
                raise ConfigError(f"the output would overwrite {path}, which is read here; choose another --out")
    except OSError as error:
        raise ConfigError(f"the output path {path} is impossible ({error.strerror}); choose another") from error
    if not cli.everywhere.overwrite:
        check_replaceable(path)
    return path


def open_output(out: Path, class_names: Sequence[str] = (), shard_size: int = 10_000) -> ImageWriter:
    """Return a writer of single PNGs, as `open_writer` does, if something can be written there."""
    from spheregen.data import open_writer

    overwrite = cli.everywhere.overwrite
    writer = open_writer(out, class_names=class_names, shard_size=shard_size, overwrite=overwrite)
    output_folder(out if writer.is_folder else out.parent)
    return writer


def others_in(out: Path, mine: Callable[[str], bool]) -> int:
    """Count the images in a folder whose names without a suffix are not `mine`: new ones would mix with them."""
    from spheregen.data.names import is_image_name

    files = (Path(name) for name in os.listdir(out)) if out.is_dir() else ()  # noqa: PTH208 (of thousands of files)
    return sum(is_image_name(file.name) and not mine(file.stem) for file in files)


def sheet_of(out: Path) -> Path:
    """Return the sheet of what is written to `out`: that file, or beside the folder, zip or shards of single PNGs."""
    if out.suffix.lower() == ".png":
        return out
    if out.name in ("", ".."):  # the folder that we are in, and others without a name
        return out / "sheet.png"
    name = out.stem if out.suffix.lower() in (".zip", ".tar") else out.name
    return out.with_name((re.sub(r"[-_.]?%\d+d", "", name) or "sheet") + ".png")


def sheet_file(out: Path, inputs: Iterable[str | Path]) -> Path:
    """Return the sheet of what is written to `out`: a file to write, as `output_file` says."""
    return output_file(sheet_of(out), inputs)


def sample_sheet(images: PipelineOutput) -> Image.Image:
    """Return samples on a sheet that names their classes or prompts: above columns of one each, else below images."""
    from spheregen.data import image_grid, labelled_sheet

    scale, count = max(1, SHEET_PIXELS // images.tensor.shape[-1]), len(images)
    if (images.labels is None and images.prompts is None) or count > NAMED:
        return image_grid(images.tensor, scale=scale)
    names = [text[:LONGEST_PROMPT] for text in images.prompts or map(images.class_name, range(count))]
    turns = (n for n in range(1, min(count, 20) + 1) if names == [names[i % n] for i in range(count)])
    turn = next(turns, 0)
    columns = turn if turn > 1 and (turn < count or turn <= 10) else math.ceil(math.sqrt(count))
    starts, blank = range(0, count, columns), -count % columns
    cells = [*images.tensor.split(1), *[None] * blank]
    notes = [*([""] * count if turn else names), *[""] * blank]
    return labelled_sheet(
        [cells[start : start + columns] for start in starts],
        [""] * len(starts),
        names[:columns] if turn > 1 and columns == turn else [""] * columns,
        title=names[0] if turn == 1 else "",
        scale=scale,
        notes=[notes[start : start + columns] for start in starts],
    )


def write_sheet(rows: Sequence[Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write rows of images, each (n, C, S, S), as one sheet."""
    import torch

    from spheregen.data import image_grid, save_png

    images = torch.cat(list(rows))
    scale = max(1, SHEET_PIXELS // images.shape[-1])
    save_png(image_grid(images, columns=len(rows[0]), scale=scale), path, metadata)


class EditWriter(ExitStack):
    """What an editing command leaves: single PNGs, and a sheet beside them; or the sheet alone.

    Args:
        out: as `--out` says it: a folder or archive, or a .png for the sheet alone.
        inputs: files that are read, which the sheet must not overwrite.

    Raises:
        ConfigError: `out` cannot be written to; nothing has been done yet.
    """

    def __init__(self, out: Path, inputs: Sequence[str | Path]) -> None:
        super().__init__()
        self.out = out
        self.sheet = sheet_file(out, inputs)
        self._singles = None if self.sheet == out else self.enter_context(open_output(out))
        self._written = {self.sheet.stem}
        self._rows: list[Tensor] = []
        self._count = 0
        self._first: PipelineOutput | None = None

    def add(self, output: PipelineOutput, names: Sequence[str], rows: Sequence[Tensor]) -> None:
        """Take images of one call, the names of the files they were made of, and rows (n, C, S, S) for the sheet."""
        self._first = self._first or output
        self._rows += rows[: SHEET_ROWS - len(self._rows)]
        if self._singles is not None:
            for number, (image, name) in enumerate(zip(output.images, names, strict=True)):
                key = f"{self._count + number:06d}-{name}"
                self._singles.add(key, image, output.metadata(number) | {"image": name})
                self._written.add(key)
        self._count += len(names)

    def finish(self, done: str) -> None:
        """Write the sheet and say what was done, such as "edited on cpu", and where everything is."""
        assert self._first is not None
        write_sheet(self._rows, self.sheet, self._first.metadata(0))
        warn_of_others(self.out, self._written.__contains__)
        answer = {"count": self._count, "out": str(self.out), "sheet": str(self.sheet)}
        place = f"the sheet is {self.sheet}" if self._singles is None else f"{self.out}, sheet {self.sheet}"
        cli.finish(
            {**answer, "seed": self._first.seeds[0], **self._first.settings},
            f"{cli.count_of(self._count)} {done}: {place}",
        )


def warn_of_others(out: Path, mine: Callable[[str], bool]) -> None:
    """Say that a folder holds images beside those that were written now."""
    if others := others_in(out, mine):
        cli.warn(f"warning: {out} already holds {cli.count_of(others)} that this command did not write")


def step_rows(
    before: Sequence[Tensor], output: PipelineOutput, after: Sequence[Tensor] = (), most: int | None = None
) -> list[Tensor]:
    """Return a row for each image: what it was made of, batches (B, C, S, S), every step or `most` of them spread
    evenly, the last one included, and what comes behind."""
    import torch

    steps = output.trajectory
    if most is not None and len(steps) > most:
        steps = tuple(steps[round((number + 1) * len(steps) / most) - 1] for number in range(most))
    return list(torch.stack([*before, *steps, *after], dim=1))


def as_tensor(pipe: Pipeline, images: Any, **options: Any) -> Tensor:
    """Return images as the model takes them, (B, C, S, S) in [0, 1], with changed `options` of reading."""
    from spheregen.data.inputs import load_images

    return load_images(images, dataclasses.replace(pipe.image_options, **options))
