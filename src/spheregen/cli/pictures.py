"""Pictures in and out of the commands that change them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from spheregen.cli.options import output_file, pictures_of, print_json, say, sheet_of, watch

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from spheregen.pipeline import PipelineOutput

SHEET_ROWS = 20  # rows of a sheet, at most
SHEET_PIXELS = 64  # small pictures are enlarged to about this in sheets
AT_ONCE = 64  # pictures that are read, changed and written together
LONGEST_NAME = 120  # bytes of a name; with number and suffix it must be a file name


@dataclass(frozen=True)
class PictureFile:
    """A picture that a command was given."""

    where: str
    """Its path, or its place in an archive or data set."""
    open: Callable[[], Image.Image]

    @property
    def name(self) -> str:
        """For the file that is made of it: no folder, no suffix, nothing that is unusual in file names."""
        inside = re.sub(r"^.*\.(?:zip|tar) ", "", self.where, flags=re.IGNORECASE | re.DOTALL)
        return file_name(Path(inside).stem)


def file_name(text: str) -> str:
    """A text without signs that are unusual in file names, and not too long for one."""
    plain = re.sub(r"[^\w()+,=@-]+", "-", text)
    return plain.encode("utf-8", "replace")[:LONGEST_NAME].decode("utf-8", "ignore")


def gather(images: Sequence[str], split: str) -> list[PictureFile]:
    """The pictures that files, folders and data sets on a command line hold; none is read yet.

    Raises:
        DataError: there is no such file or data set.
    """
    from spheregen.data import ARCHIVES, open_source, read_image

    found: list[PictureFile] = []
    for given in images:
        path = Path(given)
        if os.path.isfile(given) and path.suffix.lower() not in ARCHIVES:  # noqa: PTH113 (any text is welcome)
            found.append(PictureFile(given, lambda path=path: read_image(path)))  # type: ignore[misc]
            continue
        source = open_source(given, split=split)
        for i in range(len(source)):
            found.append(PictureFile(source.describe(i), lambda source=source, i=i: source.read(i)))  # type: ignore[misc]
    return found


def parts(files: Sequence[PictureFile]) -> list[Sequence[PictureFile]]:
    """Files in parts that are worked on together."""
    return [files[start : start + AT_ONCE] for start in range(0, len(files), AT_ONCE)]


class EditWriter(AbstractContextManager["EditWriter"]):
    """What an editing command leaves: single PNGs, and a sheet beside them; or the sheet alone.

    Args:
        out: as `--out` says it: a folder or archive, or a .png for the sheet alone.
        inputs: files that are read, which the sheet must not overwrite.
        all_steps: write the pictures after each step, too.

    Raises:
        ConfigError: `out` cannot be written to; nothing has been done yet.
    """

    def __init__(self, out: Path, inputs: Sequence[str | Path], *, all_steps: bool = False) -> None:
        from spheregen.data import open_writer

        self.out, self.all_steps = out, all_steps
        self.sheet = output_file(sheet_of(out), inputs)
        self._singles = None if self.sheet == out else open_writer(out)
        self._rows: list[Tensor] = []
        self._count = 0
        self._metadata: dict[str, str] = {}
        self._answer: dict[str, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        if self._singles is not None:
            self._singles.__exit__(kind, error, trace)

    def add(self, output: PipelineOutput, names: Sequence[str], rows: Sequence[Tensor]) -> None:
        """Pictures of one call, the names of the files they were made of, and rows (n, C, S, S) for the sheet."""
        from spheregen.data import to_pil

        if not self._count:
            self._metadata = output.metadata(0)
            self._answer = {"seed": output.seeds[0], **output.settings}
        self._rows += rows[: SHEET_ROWS - len(self._rows)]
        if self._singles is not None:
            steps = [to_pil(images) for images in output.trajectory] if self.all_steps else []
            for number, (picture, name) in enumerate(zip(output.images, names, strict=True)):
                metadata = output.metadata(number) | {"image": name}
                key = f"{self._count + number:06d}-{name}"
                for step, pictures in enumerate(steps, start=1):
                    self._singles.add(f"{key}-step-{step}", pictures[number], metadata | {"step": str(step)})
                self._singles.add(key, picture, metadata)
        self._count += len(names)

    def finish(self, done: str, *, as_json: bool) -> None:
        """Write the sheet and say what was done, such as "edited on cpu", and where everything is."""
        import torch

        from spheregen.data import image_grid, save_png

        rows = torch.cat(self._rows)
        scale = max(1, SHEET_PIXELS // rows.shape[-1])
        grid = image_grid(rows, columns=len(self._rows[0]), scale=scale)
        save_png(grid, self.sheet, self._metadata)
        if as_json:
            print_json({"count": self._count, "out": str(self.out), "sheet": str(self.sheet), **self._answer})
        else:
            place = f"the sheet is {self.sheet}" if self._singles is None else f"{self.out}, sheet {self.sheet}"
            say(f"{pictures_of(self._count)} {done}: {place}")


def change_all(
    files: Sequence[PictureFile],
    change: Callable[[list[Image.Image], int], tuple[PipelineOutput, list[Tensor]]],
    writer: EditWriter,
    *,
    seed: int,
    quiet: bool,
) -> None:
    """Change pictures part by part and write them.

    `change` gets pictures and the seed of the first; it returns what it made and what the rows of the sheet begin with,
    tensors (B, C, S, S).
    """
    done = 0
    with writer:
        for part in watch(parts(files), len(files), len, quiet=quiet):
            output, before = change([file.open() for file in part], seed + done)
            writer.add(output, [file.name for file in part], step_rows(before, output))
            done += len(part)


def step_rows(before: Sequence[Tensor], output: PipelineOutput) -> list[Tensor]:
    """A row for each picture: what it was made of, batches (B, C, S, S), then every step."""
    import torch

    return list(torch.stack([*before, *output.trajectory], dim=1))
