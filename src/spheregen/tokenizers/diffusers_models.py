"""Autoencoders of the package diffusers as tokenizers: KL autoencoders (Stable Diffusion's, FLUX's), deep-compression
autoencoders (DC-AE) and representation autoencoders (RAE).

Legend: B samples, C image channels, S image size, c x h x w a latent of theirs, p the packing, N = hw/p^2 tokens in
row-major order, d = c p^2 channels of a token.
"""

from __future__ import annotations

import abc
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
from spheregen.sphere import upcast
from spheregen.tokenizers.encoders import KINDS, Frozen, check_shape
from spheregen.tokenizers.normaliser import Normaliser

RECORD = "spheregen.json"
"""Beside a saved model: its image size and packing."""
_WEIGHTS = "diffusion_pytorch_model.safetensors"
_RAE_ENCODERS = {"dinov2": KINDS["dinov2_with_registers"], "mae": KINDS["vit"], "siglip2": KINDS["siglip"]}


class DiffusersTokenizer(Frozen, abc.ABC):
    """An autoencoder of diffusers, frozen; a `Tokenizer`.

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
        unit = self.reduction * pack
        if pack < 1 or image_size < 1 or image_size % unit:
            raise ConfigError(
                f"{type(model).__name__} with pack {pack} takes images of a multiple of {unit} px, not {image_size}; "
                "choose another size or packing"
            )
        self.freeze()

    @property
    @abc.abstractmethod
    def reduction(self) -> int:
        """Image pixels along one side of a latent pixel."""

    @property
    @abc.abstractmethod
    def channels(self) -> tuple[int, int]:
        """Channels of an image and c of a latent."""

    @abc.abstractmethod
    def to_latents(self, images: Tensor) -> Tensor:
        """Images (B, C, S, S) in [-1, 1] to normalised latents (B, c, h, w)."""

    @abc.abstractmethod
    def to_images(self, latents: Tensor) -> Tensor:
        """Normalised latents (B, c, h, w) to images (B, C, S, S) about [-1, 1]."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.channels[0], self.image_size, self.image_size

    @property
    def latent_shape(self) -> tuple[int, int]:
        return self._grid**2, self.channels[1] * self.pack**2

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype  # type: ignore[no-any-return]

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, C, S, S) in [-1, 1] to normalised latents (B, N, d)."""
        check_shape(images, self.image_shape, "images")
        packed = functional.pixel_unshuffle(self.to_latents(images), self.pack)
        return packed.flatten(2).transpose(1, 2)

    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents (B, N, d) to images (B, C, S, S), clamped to [-1, 1]."""
        check_shape(latents, self.latent_shape, "latents")
        packed = latents.transpose(1, 2).unflatten(2, (self._grid, self._grid))
        return self.to_images(functional.pixel_shuffle(packed, self.pack)).clamp(-1, 1)

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

    @property
    def _grid(self) -> int:
        """Tokens along one side."""
        return self.image_size // (self.reduction * self.pack)


class KLTokenizer(DiffusersTokenizer):
    """An `AutoencoderKL`: the mean of the posterior, `(z - shift_factor) * scaling_factor`, so that the latents have
    variance 1 over all; or, for models that tell them, `(z - latents_mean) * scaling_factor / latents_std`."""

    def __init__(self, model: Any, image_size: int, pack: int = 1) -> None:
        super().__init__(model, image_size, pack)
        config, count = model.config, int(model.config.latent_channels)
        mean = [config.get("shift_factor") or 0.0] * count
        std = [1.0] * count
        if config.get("latents_mean") is not None and config.get("latents_std") is not None:
            mean, std = config.latents_mean, config.latents_std
        deviations = torch.tensor([std], dtype=torch.float64) / config.scaling_factor
        self.normaliser = Normaliser(torch.tensor([mean], dtype=torch.float64), deviations, persistent=False).eval()

    @property
    def reduction(self) -> int:
        return 2 ** (len(self.model.config.block_out_channels) - 1)  # type: ignore[no-any-return]

    @property
    def channels(self) -> tuple[int, int]:
        return int(self.model.config.in_channels), int(self.model.config.latent_channels)

    def to_latents(self, images: Tensor) -> Tensor:
        z = self.model.encode(images.to(self.dtype)).latent_dist.mode()
        return self.normaliser(z.movedim(1, -1)).movedim(-1, 1)  # type: ignore[no-any-return]

    def to_images(self, latents: Tensor) -> Tensor:
        z = self.normaliser.inverse(latents.movedim(1, -1)).movedim(-1, 1)
        return upcast(self.model.decode(z.to(self.dtype)).sample)


class DCTokenizer(DiffusersTokenizer):
    """An `AutoencoderDC`: `z * scaling_factor`."""

    @property
    def reduction(self) -> int:
        return 2 ** (len(self.model.config.encoder_block_out_channels) - 1)  # type: ignore[no-any-return]

    @property
    def channels(self) -> tuple[int, int]:
        return int(self.model.config.in_channels), int(self.model.config.latent_channels)

    def to_latents(self, images: Tensor) -> Tensor:
        z: Tensor = upcast(self.model.encode(images.to(self.dtype)).latent) * self.model.config.scaling_factor
        return z

    def to_images(self, latents: Tensor) -> Tensor:
        z = upcast(latents) / self.model.config.scaling_factor
        return upcast(self.model.decode(z.to(self.dtype)).sample)


class RAETokenizer(DiffusersTokenizer):
    """An `AutoencoderRAE`, which normalises its latents itself and makes images of one size.

    Raises:
        ConfigError: another image size, or its latents cannot be packed so.
    """

    def __init__(self, model: Any, image_size: int, pack: int = 1) -> None:
        if image_size != (own := int(model.decoder_image_size)):
            raise ConfigError(f"this AutoencoderRAE makes images of {own} px, not {image_size}; leave image_size out")
        super().__init__(model, image_size, pack)

    @property
    def reduction(self) -> int:
        return int(self.model.decoder_patch_size)

    @property
    def channels(self) -> tuple[int, int]:
        return int(self.model.config.num_channels), int(self.model.config.encoder_hidden_size)

    def to_latents(self, images: Tensor) -> Tensor:
        z: Tensor = upcast(self.model.encode(((images + 1) / 2).to(self.dtype)).latent)
        if not self.model.config.reshape_to_2d:
            side = self.image_size // self.reduction
            z = z.transpose(1, 2).unflatten(2, (side, side))
        return z

    def to_images(self, latents: Tensor) -> Tensor:
        z = latents if self.model.config.reshape_to_2d else latents.flatten(2).transpose(1, 2)
        return 2 * upcast(self.model.decode(z.to(self.dtype)).sample) - 1


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
    *,
    dtype: torch.dtype = torch.float32,
) -> DiffusersTokenizer:
    """An autoencoder of diffusers as a tokenizer, on the CPU. Only safetensors are read.

    Args:
        source: a folder that diffusers or `DiffusersTokenizer.save` wrote, or user/name[@revision] on the Hub.
        image_size: S in pixels. None: what was saved with it, or the only size that it takes.
        pack: see `DiffusersTokenizer`. None: what was saved with it, or 1.
        subfolder: of the source, such as `vae` of a whole pipeline.
        dtype: in which the network computes. float16 overflows in some KL autoencoders (`force_upcast` in their
            configuration), bfloat16 does not.

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
    record = _record(place.config.parent / RECORD, name)
    packages = [import_package("diffusers", "diffusers", f"the tokenizer {name}")]
    if class_name == "AutoencoderRAE":
        packages.append(import_package("transformers", "encoders", f"the tokenizer {name}"))
    try:
        with quiet(*packages):
            model, report = getattr(packages[0], class_name).from_pretrained(
                place.name,
                subfolder=subfolder,
                revision=place.revision,
                torch_dtype=dtype,
                use_safetensors=True,
                low_cpu_mem_usage=False,  # True needs one more package
                output_loading_info=True,
            )
            missing = set(report["missing_keys"])
            if class_name == "AutoencoderRAE" and missing:
                missing -= _fill_encoder(model, missing, place.config.parent / _WEIGHTS)
            model.to(dtype)  # diffusers leaves an AutoencoderRAE in float32; 0.42.1 warns at every cast, needed or not
    except Exception as error:  # diffusers, safetensors and HTTP libraries have no common base
        raise ModelFileError(
            f"{name} cannot be loaded ({reason(error)}); give a folder with config.json and safetensors weights"
        ) from error
    if missing:
        raise ModelFileError(f"{name} lacks {len(missing)} tensors, such as {min(missing)}; give a complete model")
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
    published_name = _RAE_ENCODERS[model.config.encoder_type].published_name
    filled: set[str] = set()
    if not file.is_file():
        return filled
    state, prefix = model.state_dict(), "encoder."
    with safe_open(file, framework="pt") as weights:
        names = [name for name in weights.keys() if name.startswith(prefix)]  # noqa: SIM118
        stored = {published_name(name.removeprefix(prefix)): name for name in names}
        for name in missing:
            source = stored.get(published_name(name.removeprefix(prefix)))
            if name.startswith(prefix) and source is not None:
                state[name].copy_(weights.get_tensor(source))
                filled.add(name)
    return filled


def _record(path: Path, name: str) -> dict[str, int]:
    """What `save` wrote beside the model; empty if it was not written by it."""
    found = read_json(path, name) if path.is_file() else {}
    if not all(isinstance(value, int) for value in found.values()):
        raise ModelFileError(f"{path.name} of {name} holds something else than image_size and pack; correct it")
    return found
