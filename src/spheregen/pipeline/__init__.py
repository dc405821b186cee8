"""What people use: load a generator, make images, change and restore photos, save it again."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Self

import torch
from torch import nn

from spheregen.devices import choose_device
from spheregen.folders.model_folder import load_model, save_model
from spheregen.folders.model_source import find_model, push_model
from spheregen.folders.summary import bundled_models
from spheregen.measure.precision import choose_precision
from spheregen.nn.block import compile_blocks
from spheregen.pipeline.options import EditOptions, GenerationOptions, RestoreOptions, SamplerOptions, named
from spheregen.pipeline.output import PipelineOutput, RestorationOutput
from spheregen.pipeline.restoration import Restoring
from spheregen.protocol import SphereGenerator

__all__ = [
    "EditOptions",
    "GenerationOptions",
    "Pipeline",
    "PipelineOutput",
    "RestorationOutput",
    "RestoreOptions",
    "SamplerOptions",
    "load",
]


class Pipeline(Restoring):
    """A generator with everything around it: device, class names, sampling defaults, images in and out.

    Every method that makes images takes any images in (PIL images, paths, arrays, tensors of any size), uses the
    model's sampling defaults where an option is left out, splits long work into batches that fit into memory, and shows
    a progress bar on a terminal. `pipe(...)` is `pipe.generate(...)`. Options of all loops: see `SamplerOptions`.

    Args:
        model: a generator; it is put into evaluation mode, its gradients are turned off.
        info: class names, preprocessing and sampling defaults.
        device: a torch device or `auto`.
        name: what the metadata of images calls the model.
        batch_size: images in one pass through the network; by default what fits into memory. It does not change them.
        progress: show a bar during long calls; by default on a terminal.
    """

    @classmethod
    @named
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        revision: str | None = None,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype | None = None,
        batch_size: int | None = None,
        progress: bool | None = None,
        quiet: bool = False,
    ) -> Self:
        """Load a model; one line on stderr says where and in which type it runs.

        Args:
            model: a model folder, the name of a bundled model (see `spheregen models`), or a Hub id `user/name`.
            revision: a branch, tag or commit of a Hub model.
            device: a torch device or `auto`.
            dtype: `float32`, `bfloat16` or `float64`, as text or torch type; `auto`: bfloat16 where the device is fast
                in it and the network large enough to gain, else float32; by default that of the saved weights, and on a
                CPU float32 of a bundled model, whose weights are half to be small.
            batch_size, progress: see the class.
            quiet: say nothing.

        Raises:
            ModelFileError: a missing, broken or foreign folder, or a Hub model that cannot be had.
            ConfigError: an unknown device or dtype.
        """
        folder = find_model(model, revision=revision)
        loaded = load_model(folder)
        because = ""
        if dtype == "auto":
            chosen = choose_precision("auto", choose_device(device), loaded.model)
            dtype, because = torch.bfloat16 if chosen.name == "bf16" else torch.float32, chosen.because
        elif dtype is None and folder in bundled_models().values() and choose_device(device).type == "cpu":
            dtype = torch.float32
        pipe = cls(
            loaded.model, loaded.info, device=device, name=str(model), batch_size=batch_size, progress=progress
        ).to(dtype=dtype)
        pipe.fingerprint = loaded.fingerprint
        if not quiet:
            print(f"{model}: {pipe.image_options.image_size} px, on {pipe.place}{because}", file=sys.stderr)
        return pipe

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model as a folder that `from_pretrained` reads."""
        save_model(Path(folder), self.model, self.info)

    @named
    def push_to_hub(self, repo: str, *, private: bool = False, token: str | None = None) -> str:
        """Upload the model to the Hugging Face Hub as `user/name` and return its address.

        Raises:
            ModelFileError: not logged in, no rights, or the Hub cannot be reached.
        """
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent) / repo.rpartition("/")[2]
            self.save_pretrained(folder)
            return push_model(folder, repo, private=private, token=token)

    def compile(self) -> Self:
        """Compile the transformer blocks by torch.compile: a slow first batch of each size, then faster ones."""
        assert isinstance(self.model, nn.Module)
        compile_blocks(self.model)
        return self


@named
def load(model: str | Path, *, device: str | torch.device = "auto") -> SphereGenerator:
    """Return the bare network of a model folder, a bundled model or a Hub model, in evaluation mode."""
    return load_model(find_model(model)).model.to(choose_device(device))
