"""Pictures in and out of the commands that change them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spheregen.cli.options import output_folder, print_json, say
from spheregen.errors import ConfigError

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from spheregen.pipeline import PipelineOutput

SHEET_ROWS = 20  # pictures of which the sheet shows something
SHEET_PIXELS = 64  # small pictures are enlarged to about this in sheets
AT_ONCE = 64  # pictures that are read, changed and written together


@dataclass(frozen=True)
class PictureFile:
    """A picture that a command was given."""

    name: str
    """For the file that is made of it."""
    open: Callable[[], Image.Image]


def gather(images: Sequence[str], split: str) -> list[PictureFile]:
    """The pictures that files, folders and data sets on a command line hold; none is read yet.

    Raises:
        DataError: there is no such file or data set.
    """
    from spheregen.data import ARCHIVES, open_source, read_image

    found: list[PictureFile] = []
    for given in images:
        path = Path(given)
        if path.is_file() and path.suffix.lower() not in ARCHIVES:
            found.append(PictureFile(path.stem, lambda path=path: read_image(path)))  # type: ignore[misc]
            continue
        source = open_source(given, split=split)
        for i in range(len(source)):
            where = Path(source.describe(i).partition(" row ")[0])
            found.append(PictureFile(where.stem, lambda source=source, i=i: source.read(i)))  # type: ignore[misc]
    return found


def check_out(out: Path) -> None:
    """Complain before any work if `out` can be neither a folder nor a .png file.

    Raises:
        ConfigError: it is a file where a folder is needed, or the other way round.
    """
    as_sheet = out.suffix.lower() == ".png"
    output_folder(out.parent if as_sheet else out)
    if as_sheet and out.is_dir():
        raise ConfigError(f"the output path {out} is a folder; choose a file for the sheet")


class EditWriter:
    """What an editing command leaves: single PNGs in a folder and a sheet beside it, or the sheet alone."""

    def __init__(self, out: Path, *, all_steps: bool = False) -> None:
        check_out(out)
        self.out, self.all_steps = out, all_steps
        self.only_sheet = out.suffix.lower() == ".png"
        self.sheet = out if self.only_sheet else out.with_name(f"{out.name}.png")
        self._rows: list[Tensor] = []
        self._count = 0
        self._settings: dict[str, Any] = {}

    def add(self, output: PipelineOutput, names: Sequence[str], rows: Sequence[Tensor]) -> None:
        """Pictures of one call, the names of the files they were made of, and rows (n, C, S, S) for the sheet."""
        from spheregen.data import save_png, to_pil

        self._rows += rows[: SHEET_ROWS - len(self._rows)]
        if not self.only_sheet:
            steps = [to_pil(images) for images in output.trajectory] if self.all_steps else []
            for number, (picture, name) in enumerate(zip(output.images, names, strict=True)):
                metadata = output.metadata(number) | {"image": name}
                stem = f"{self._count + number:06d}-{name}"
                for step, pictures in enumerate(steps, start=1):
                    path = self.out / f"{stem}-step-{step}.png"
                    save_png(pictures[number], path, metadata | {"step": str(step)}, durable=False)
                save_png(picture, self.out / f"{stem}.png", metadata, durable=False)
        self._count += len(names)
        self._settings = dict(output.settings)

    def finish(self, what: str, *, as_json: bool) -> None:
        """Write the sheet and say where everything is."""
        import torch

        from spheregen.data import image_grid, save_png

        rows = torch.cat(self._rows)
        scale = max(1, SHEET_PIXELS // rows.shape[-1])
        grid = image_grid(rows, columns=len(self._rows[0]), scale=scale)
        save_png(grid, self.sheet, {name: str(value) for name, value in self._settings.items()})
        if as_json:
            print_json({"count": self._count, "out": str(self.out), "sheet": str(self.sheet), **self._settings})
        else:
            place = f"the sheet is {self.sheet}" if self.only_sheet else f"{self.out}, sheet {self.sheet}"
            say(f"{self._count} {what}: {place}")


def step_rows(before: Sequence[Tensor], output: PipelineOutput) -> list[Tensor]:
    """A row for each picture: what it was made of, batches (B, C, S, S), then every step."""
    import torch

    return list(torch.stack([*before, *output.trajectory], dim=1))


def parts(files: Sequence[PictureFile]) -> list[Sequence[PictureFile]]:
    """Files in parts that are worked on together."""
    return [files[start : start + AT_ONCE] for start in range(0, len(files), AT_ONCE)]
