"""Autoencoders of the package diffusers as tokenizers: KL autoencoders (Stable Diffusion's, FLUX's), deep-compression
autoencoders (DC-AE) and representation autoencoders (RAE).

Legend: B samples, C image channels, S image size, c x h x w a latent of theirs, p the packing, N = hw/p^2 tokens in
row-major order, d = c p^2 channels of a token.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import functional

from spheregen.errors import ConfigError, ModelFileError, SphereGenError
from spheregen.external import import_package, locate, quiet, read_json, reason
from spheregen.files import atomic_path, write_json
from spheregen.networks.encoders import published_name
from spheregen.networks.frozen import FrozenTokenizer
from spheregen.networks.normaliser import Normaliser
from spheregen.sphere import upcast
from spheregen.tensors import check_finite

RECORD = "spheregen.json"
"""Beside a saved model: its image size and packing."""
_WEIGHTS = "diffusion_pytorch_model.safetensors"
_RAE_ENCODERS = {"dinov2": "dinov2_with_registers", "mae": "vit", "siglip2": "siglip"}


class DiffusersTokenizer(FrozenTokenizer):
    """An autoencoder of diffusers, frozen; a `Tokenizer`.

    Its latents are normalised by the statistics that its configuration tells, see the sub-classes.

    Args:
        model: the autoencoder.
        image_size: S in pixels.
        pack: side p of the square of latent pixels that becomes one token, its channels in the order c, row, column (as
            FLUX packs them: with p = 2 a latent of 16 x 32 x 32 has 256 tokens of 64).

    Raises:
        ConfigError: the model cannot take images of this size, or its latents cannot be packed so.
    """

    def __init__(self, model: Any, image_size: int, pack: int = 1) -> None:
        super().__init__()
        self.model = model
        self.image_size, self.pack = image_size, pack
        config = model.config
        self.image_channels, self.latent_channels, self.reduction = self.read(model)
        """Of an image, of a latent, and image pixels along one side of a latent pixel."""
        unit = self.reduction * pack
        self._grid = image_size // max(1, unit)  # tokens along one side
        if pack < 1 or image_size < 1 or image_size % unit:
            raise ConfigError(
                f"{type(model).__name__} with pack {pack} takes images of a multiple of {unit} px, not {image_size}; "
                "choose another size or packing"
            )
        self.image_shape = self.image_channels, image_size, image_size
        self.latent_shape = self._grid**2, self.latent_channels * pack**2
        mean, std, scale = [0.0] * self.latent_channels, [1.0] * self.latent_channels, 1.0
        if self.normalises:
            scale = config.scaling_factor
            mean = [config.get("shift_factor") or 0.0] * self.latent_channels
            if config.get("latents_mean") is not None and config.get("latents_std") is not None:
                mean, std = config.latents_mean, config.latents_std
        statistics = torch.tensor([mean], dtype=torch.float64), torch.tensor([std], dtype=torch.float64) / scale
        self.normaliser = Normaliser(*statistics, persistent=False)
        self.freeze()

    normalises = True
    """The statistics are applied here, not by the model itself."""

    def read(self, model: Any) -> tuple[int, int, int]:
        """Return channels of an image and of a latent, and image pixels along one side of a latent pixel."""
        raise NotImplementedError

    def raw_latents(self, images: Tensor) -> Tensor:
        """Return the model's own latents (B, c, h, w) of images (B, C, S, S) in [-1, 1]."""
        latent: Tensor = self.model.encode(images.to(self.dtype)).latent
        return latent

    def raw_images(self, latents: Tensor) -> Tensor:
        """Return images (B, C, S, S) about [-1, 1] of the model's own latents (B, c, h, w)."""
        return upcast(self.model.decode(latents.to(self.dtype)).sample)

    def to_latents(self, images: Tensor) -> Tensor:
        latents = self.normaliser(self.raw_latents(images).movedim(1, -1)).movedim(-1, 1)
        return functional.pixel_unshuffle(latents, self.pack).flatten(2).transpose(1, 2)

    def to_images(self, latents: Tensor) -> Tensor:
        packed = latents.transpose(1, 2).unflatten(2, (self._grid, self._grid))
        z = self.normaliser.inverse(functional.pixel_shuffle(packed, self.pack).movedim(1, -1)).movedim(-1, 1)
        return self.raw_images(z)

    def save(self, folder: Path) -> None:
        """Write the model into a folder that `open_diffusers` reads again, and diffusers too; files of the same names
        are replaced as wholes.

        Raises:
            SphereGenError: the folder cannot be written to.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder) as place:
                with quiet(import_package("diffusers", "diffusers", "a model of diffusers")):
                    self.model.save_pretrained(place, safe_serialization=True)
                # the configuration last: without it the folder is no model
                for file in sorted(Path(place).iterdir(), key=lambda path: path.name == "config.json"):
                    with atomic_path(folder / file.name) as temporary:
                        file.replace(temporary)
        except (OSError, SafetensorError) as error:
            cause = getattr(error, "strerror", None) or reason(error)
            raise SphereGenError(f"cannot write {folder}: {cause}; free space or choose another place") from error
        write_json(folder / RECORD, {"image_size": self.image_size, "pack": self.pack})


class KLTokenizer(DiffusersTokenizer):
    """An `AutoencoderKL`: the mean of the posterior, `(z - shift_factor) * scaling_factor`, so that the latents have
    variance 1 over all; or, for models that tell them, `(z - latents_mean) * scaling_factor / latents_std`."""

    def read(self, model: Any) -> tuple[int, int, int]:
        config = model.config
        return int(config.in_channels), int(config.latent_channels), 2 ** (len(config.block_out_channels) - 1)

    def raw_latents(self, images: Tensor) -> Tensor:
        latent: Tensor = self.model.encode(images.to(self.dtype)).latent_dist.mode()
        return latent


class DCTokenizer(DiffusersTokenizer):
    """An `AutoencoderDC`: `z * scaling_factor`."""

    def read(self, model: Any) -> tuple[int, int, int]:
        config = model.config
        return int(config.in_channels), int(config.latent_channels), 2 ** (len(config.encoder_block_out_channels) - 1)


class RAETokenizer(DiffusersTokenizer):
    """An `AutoencoderRAE`, which normalises its latents itself and makes images in [0, 1] of one size.

    Raises:
        ConfigError: another image size, or its latents cannot be packed so.
    """

    normalises = False

    def __init__(self, model: Any, image_size: int, pack: int = 1) -> None:
        if image_size != (own := int(model.decoder_image_size)):
            raise ConfigError(f"this AutoencoderRAE makes images of {own} px, not {image_size}; leave image_size out")
        super().__init__(model, image_size, pack)

    def read(self, model: Any) -> tuple[int, int, int]:
        return int(model.config.num_channels), int(model.config.encoder_hidden_size), int(model.decoder_patch_size)

    def raw_latents(self, images: Tensor) -> Tensor:
        z = super().raw_latents((images + 1) / 2)
        side = self.image_size // self.reduction
        return z if self.model.config.reshape_to_2d else z.transpose(1, 2).unflatten(2, (side, side))

    def raw_images(self, latents: Tensor) -> Tensor:
        z = latents if self.model.config.reshape_to_2d else latents.flatten(2).transpose(1, 2)
        return 2 * super().raw_images(z) - 1


ADAPTERS: Mapping[str, type[DiffusersTokenizer]] = {
    "AutoencoderKL": KLTokenizer,
    "AutoencoderDC": DCTokenizer,
    "AutoencoderRAE": RAETokenizer,
}
"""By the `_class_name` of config.json."""


def open_diffusers(
    source: Path | str,
    image_size: int | None = None,
    pack: int | None = None,
    subfolder: str | None = None,
) -> DiffusersTokenizer:
    """Open an autoencoder of diffusers as a tokenizer, on the CPU. Only safetensors are read.

    Args:
        source: a folder that diffusers or `DiffusersTokenizer.save` wrote, or user/name[@revision] on the Hub.
        image_size: S in pixels. None: what was saved with it, or the only size that it takes.
        pack: see `DiffusersTokenizer`. None: what was saved with it, or 1.
        subfolder: of the source, such as `vae` of a whole pipeline.

    Raises:
        SphereGenError: diffusers, or transformers for an RAE, is not installed.
        ModelFileError: the source is missing, out of reach, incomplete, or of another class.
        ConfigError: the image size is missing or impossible, or the packing is.
    """
    name = f"{source}/{subfolder}" if subfolder else str(source)
    within = f"{subfolder}/" if subfolder else ""
    place = locate(str(source), "a model of diffusers", file=f"{within}config.json", also=f"{within}{RECORD}")
    if not place.config.is_file() and (place.config.parent / "model_index.json").is_file():
        raise ModelFileError(f"{name} is a whole pipeline; give the subfolder of its autoencoder, such as vae")
    class_name = str(read_json(place.config, name).get("_class_name"))
    if class_name not in ADAPTERS:
        raise ModelFileError(
            f"{name} is of class {class_name!r}, which is no tokenizer known here; give one of {', '.join(ADAPTERS)}"
        )
    record_file = place.config.parent / RECORD
    record = read_json(record_file, name) if record_file.is_file() else {}  # what `save` wrote beside the model
    if not all(isinstance(value, int) for value in record.values()):
        raise ModelFileError(f"{RECORD} of {name} holds something else than image_size and pack; correct it")
    packages = [import_package("diffusers", "diffusers", f"the tokenizer {name}")]
    if class_name == "AutoencoderRAE":
        packages.append(import_package("transformers", "encoders", f"the tokenizer {name}"))
    try:
        with quiet(*packages):
            model, report = getattr(packages[0], class_name).from_pretrained(
                place.name,
                subfolder=subfolder,
                revision=place.revision,
                torch_dtype=torch.float32,
                use_safetensors=True,
                low_cpu_mem_usage=False,  # True needs one more package
                output_loading_info=True,
            )
            missing = set(report["missing_keys"])
            if class_name == "AutoencoderRAE" and missing:
                missing -= _fill_encoder(model, missing, place.config.parent / _WEIGHTS)
    except Exception as error:  # diffusers, safetensors and HTTP libraries have no common base
        raise ModelFileError(
            f"{name} cannot be loaded ({reason(error)}); give a folder with config.json and safetensors weights"
        ) from error
    if missing:
        raise ModelFileError(f"{name} lacks {len(missing)} tensors, such as {min(missing)}; give a complete model")
    check_finite(place.config.parent, model.state_dict())
    size = record.get("image_size", getattr(model, "decoder_image_size", None)) if image_size is None else image_size
    if size is None:
        raise ConfigError(f"{name} takes images of many sizes; give image_size")
    return ADAPTERS[class_name](model, size, record.get("pack", 1) if pack is None else pack)


def _fill_encoder(model: Any, missing: set[str], file: Path) -> set[str]:
    """Read those weights of an AutoencoderRAE's encoder that are missing because transformers, a part of which it is,
    called them otherwise when the file was written.

    Returns:
        The names of those that were found.
    """
    kind = _RAE_ENCODERS[model.config.encoder_type]
    if not file.is_file():
        return set()
    filled, state, prefix = set(), model.state_dict(), "encoder."
    with safe_open(file, framework="pt") as weights:
        names = [name for name in weights.keys() if name.startswith(prefix)]  # noqa: SIM118
        stored = {published_name(kind, name.removeprefix(prefix)): name for name in names}
        for name in missing:
            source = stored.get(published_name(kind, name.removeprefix(prefix)))
            if name.startswith(prefix) and source is not None:
                state[name].copy_(weights.get_tensor(source))
                filled.add(name)
    return filled
