"""Fine-tuning keeps what fits, matches classes by name, and disturbs nothing that is kept."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from spheregen.errors import ModelFileError
from spheregen.family.sphere_encoder.network import AutoencoderConfig, SphereAutoencoder
from spheregen.folders.model_folder import ModelInfo
from spheregen.nn.sizes import TransformerSize
from spheregen.training.transfer import inherited_provenance, transfer

ANIMALS = ("cat", "dog", "fox")
DEEPER = {
    "encoder": TransformerSize(width=16, depth=4, heads=2),
    "decoder": TransformerSize(width=24, depth=4, heads=2),
    "decoder_mixer_depth": 3,
}


def build(seed: int = 1, **options: Any) -> SphereAutoencoder:
    """A fresh model, as a run builds it."""
    defaults: dict[str, Any] = {
        "image_size": 8,
        "patch_size": 4,
        "encoder": TransformerSize(width=16, depth=2, heads=2, in_context_start=1),
        "decoder": TransformerSize(width=24, depth=3, heads=2),
        "latent_channels": 4,
        "encoder_mixer_depth": 1,
        "decoder_mixer_depth": 2,
        "num_classes": 3,
        "decoder_input_init": "scaled",
        "output_init": "xavier",
    }
    torch.manual_seed(seed)
    return SphereAutoencoder(AutoencoderConfig(**{**defaults, **options})).eval()


@torch.no_grad()
def trained(**options: Any) -> SphereAutoencoder:
    """A model none of whose weights is as it was built."""
    model = build(0, **options)
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    if model.encoder.norm is not None:
        model.encoder.norm.running_mean += 0.3
    return model


@torch.no_grad()
def outputs(model: SphereAutoencoder, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Latents of images and images of latents, before sphere and clamp."""
    generator = torch.Generator().manual_seed(2)
    images = torch.rand(4, *model.image_shape, generator=generator) * 2 - 1
    return model.encoder(images, labels), model.decoder(
        torch.randn(4, *model.latent_shape, generator=generator), labels
    )


@torch.no_grad()
def trunk(model: SphereAutoencoder, labels: Tensor | None = None) -> Tensor:
    """The tokens behind the encoder's last block."""
    images = torch.rand(4, *model.image_shape, generator=torch.Generator().manual_seed(2))
    encoder = model.encoder
    tokens: Tensor = encoder.trunk(encoder.patches(images), encoder.trunk.told(labels, len(images)))
    return tokens


def assert_same(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


VARIANTS: dict[str, dict[str, Any]] = {
    "same": {},
    "unconditional": {"num_classes": 0},
    "more classes": {"num_classes": 7},
    "larger images": {"image_size": 16},
    "smaller patches": {"patch_size": 2},
    "grey": {"image_channels": 1, "pixel_head": "conv"},
    "deeper": DEEPER,
    "wider decoder": {"decoder": TransformerSize(width=32, depth=3, heads=2)},
    "no mixers": {"encoder_mixer_depth": 0, "decoder_mixer_depth": 0, "mixer_affine": False},
    "in-context tokens": {"in_context_tokens": 2, "num_classes": 0},
    "batch norm": {"latent_norm": "batch", "latent_channels": 6, "prior": "gaussian"},
    "much": {"num_classes": 0, "image_size": 16, "image_channels": 1, "latent_channels": 2, **DEEPER},
}


@pytest.mark.parametrize(
    ("before", "now"), [*(("same", now) for now in VARIANTS), ("much", "same"), ("much", "more classes")]
)
def test_any_model_starts_from_any_other(before: str, now: str) -> None:
    source, target, twin = trained(**VARIANTS[before]), build(**VARIANTS[now]), build(**VARIANTS[now])
    state, random = copy.deepcopy(source.state_dict()), torch.get_rng_state()
    result = transfer(target, source)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(state[name], tensor) for name, tensor in source.state_dict().items())
    # all parameters of the target, each once, and told in a few lines
    ours = [part.name for part in result.parts if part.fate != "dropped"]
    assert ours == [name for name, _ in target.named_parameters()]
    assert not set(result.names("dropped")) & set(ours)
    assert any(".trunk.blocks." in name for name in result.names("kept"))
    assert all(torch.equal(target.state_dict()[name], state[name]) for name in result.names("kept"))
    lines = result.summary()
    assert lines[0].startswith("kept ") and len(lines) <= 4 + len(result.notes)
    assert all(bool(output.isfinite().all()) for output in outputs(target))
    # the same inputs give the same weights
    assert transfer(twin, source) == result
    assert all(torch.equal(a, b) for a, b in zip(target.parameters(), twin.parameters(), strict=True))


def test_classes_are_matched_by_name() -> None:
    source, target = trained(), build(num_classes=5)
    result = transfer(target, source, target_classes=("owl", "fox", "cat", "ape", "elk"), source_classes=ANIMALS)
    assert "2 of 5 classes by name, 3 new, 1 left out" in "\n".join(result.summary())
    assert_same(outputs(target), outputs(source))  # the null class
    assert_same(outputs(target, torch.tensor([1, 2, 5, 5])), outputs(source, torch.tensor([2, 0, 3, 3])))
    table = target.decoder.trunk.labels.table.weight.detach()
    new = table[[0, 3, 4]] - table[-1]
    assert 0.005 < new.std() < 0.05 and torch.pdist(new).min() > 0.03  # near the null class, and each another


def test_blocks_compute_what_they_did_when_classes_are_new() -> None:
    source, target = trained(num_classes=0), build(**{**DEEPER, "decoder_mixer_depth": 2})
    transfer(target, source)
    assert_same((trunk(target, torch.tensor([0, 1, 2, 3])),), (trunk(source),))


def test_another_image_size_keeps_everything_but_the_mixing_of_tokens() -> None:
    target = build(image_size=16)
    result = transfer(target, trained())
    assert all("token_mlp" in name for name in result.names("fresh"))
    gains = {name: value.item() for name, value in target.named_parameters() if name.endswith("_gain")}
    assert all((value == 0) == ("token" in name) for name, value in gains.items())
    assert "image_size 8 -> 16" in "\n".join(result.summary())


def test_statistics_of_a_batch_norm_come_along_where_channels_are_the_same() -> None:
    source, target = trained(latent_norm="batch"), build(latent_norm="batch")
    other = build(latent_norm="batch", latent_channels=6)
    transfer(target, source)
    transfer(other, source)
    means = [model.encoder.norm.running_mean for model in (source, target, other)]
    assert torch.equal(means[0], means[1]) and not means[2].any()


def test_what_is_frozen_is_left_alone() -> None:
    target = build()
    before = copy.deepcopy(target.encoder.state_dict())
    result = transfer(target, trained(), learned=target.decoder)
    assert {part.name.partition(".")[0] for part in result.parts} == {"decoder"}
    assert all(torch.equal(before[name], tensor) for name, tensor in target.encoder.state_dict().items())


def test_broken_weights_are_refused() -> None:
    for name in ("decoder.head.linear.weight", "encoder.norm.running_mean"):
        source = trained(latent_norm="batch")
        source.state_dict()[name].view(-1)[0] = float("nan")
        with pytest.raises(ModelFileError, match=name):
            transfer(build(latent_norm="batch"), source)


def test_provenance_is_inherited() -> None:
    assert inherited_provenance("animals", ModelInfo()) == {"base_model": "animals"}
    known = ModelInfo(
        training={"recipe": "flowers"},
        provenance={"source": "its.pth", "license": "cc-by-4.0", "base_model": "first"},
    )
    assert inherited_provenance("me/flowers", known) == {
        "base_model": "me/flowers (recipe flowers, fine-tuned from first)",
        "source": "its.pth",
        "license": "cc-by-4.0",
    }
