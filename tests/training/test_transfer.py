"""Fine-tuning keeps what fits and what the network computes, wherever that is possible."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from spheregen.errors import ConfigError, ModelFileError
from spheregen.model_folder import ModelInfo
from spheregen.models.autoencoder import AutoencoderConfig, SphereAutoencoder
from spheregen.models.sizes import TransformerSize
from spheregen.sphere import spherify
from spheregen.training.transfer import Transfer, inherited_provenance, transfer

ENCODER = TransformerSize(width=16, depth=2, heads=2, in_context_start=1)
DECODER = TransformerSize(width=24, depth=3, heads=2)
NETWORKS = ("encoder", "decoder")
ANIMALS = ("cat", "dog", "fox")


def build(seed: int = 1, **options: Any) -> SphereAutoencoder:
    """A fresh model, as a run builds it."""
    defaults: dict[str, Any] = {
        "image_size": 8,
        "patch_size": 4,
        "encoder": ENCODER,
        "decoder": DECODER,
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
        model.encoder.norm.running_variance *= 2
    return model


def images(model: SphereAutoencoder, count: int = 4) -> Tensor:
    config = model.config
    generator = torch.Generator().manual_seed(2)
    shape = (count, config.image_channels, config.image_size, config.image_size)
    return torch.rand(shape, generator=generator) * 2 - 1


def points(model: SphereAutoencoder, count: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return spherify(torch.randn(count, *model.latent_shape, generator=generator))


@torch.no_grad()
def outputs(model: SphereAutoencoder, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Latents of pictures and pictures of latents, before sphere and clamp."""
    return model.encoder(images(model), labels), model.decoder(points(model), labels)


@torch.no_grad()
def trunks(model: SphereAutoencoder, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The tokens behind the last block of encoder and decoder."""
    decoder = model.decoder
    x = decoder.embed(points(model))
    x = x if decoder.mixer is None else decoder.mixer(x)
    return model.encoder.trunk(model.encoder.patches(images(model)), labels)[0], decoder.trunk(x, labels)[0]


def assert_close(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...], tolerance: float = 1e-5) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def size(model: SphereAutoencoder) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def check(result: Transfer, target: SphereAutoencoder) -> None:
    """The report is about all parameters, each once, and says so in a few lines."""
    assert result.count("kept", "adapted", "fresh") == size(target)
    ours = [part.name for part in result.parts if part.fate != "dropped"]
    assert ours == [name for name, _ in target.named_parameters()]
    assert all((part.reason == "") == (part.fate == "kept") for part in result.parts)
    assert not {part.name for part in result.parts if part.fate == "dropped"} & set(ours)
    lines = result.summary()
    assert lines[0].startswith("kept ") and len(lines) <= 4 + len(result.notes)
    assert all("\n" not in line and "None" not in line for line in lines)


VARIANTS = {
    "same": {},
    "unconditional": {"num_classes": 0},
    "more classes": {"num_classes": 7},
    "fewer classes": {"num_classes": 2},
    "larger pictures": {"image_size": 16},
    "larger pictures and patches": {"image_size": 16, "patch_size": 8},
    "smaller patches": {"patch_size": 2},
    "grey": {"image_channels": 1},
    "grey, smaller patches": {"image_channels": 1, "patch_size": 2},
    "conv head": {"pixel_head": "conv"},
    "conv head, grey, larger": {"pixel_head": "conv", "image_channels": 1, "image_size": 16, "patch_size": 8},
    "deeper": {"encoder": TransformerSize(width=16, depth=4, heads=2, in_context_start=1)},
    "shallower": {"decoder": TransformerSize(width=24, depth=1, heads=2)},
    "other heads": {"decoder": TransformerSize(width=24, depth=3, heads=3)},
    "wider decoder": {"decoder": TransformerSize(width=32, depth=3, heads=2)},
    "other latents": {"latent_channels": 6},
    "deeper mixers": {"encoder_mixer_depth": 3, "decoder_mixer_depth": 3},
    "no mixers": {"encoder_mixer_depth": 0, "decoder_mixer_depth": 0},
    "no gain in mixers": {"mixer_affine": False},
    "in-context tokens": {"in_context_tokens": 2},
    "unconditional, in-context tokens": {"in_context_tokens": 2, "num_classes": 0},
    "no tanh, spherified": {"output_activation": "none", "spherify_decoder_blocks": True},
    "batch norm": {"latent_norm": "batch"},
    "batch norm, other latents": {"latent_norm": "batch", "latent_channels": 6},
    "gaussian": {"prior": "gaussian"},
    "gaussian, unconditional": {"prior": "gaussian", "num_classes": 0, "latent_norm": "batch"},
    "much": {
        "num_classes": 0,
        "image_size": 16,
        "image_channels": 1,
        "latent_channels": 2,
        "decoder": TransformerSize(width=24, depth=4, heads=2),
    },
}


PAIRS = {pair for variant in VARIANTS for pair in ((variant, "same"), ("same", variant), ("much", variant))}


@pytest.mark.parametrize(("before", "now"), sorted(PAIRS))
def test_any_model_can_start_from_any_other(before: str, now: str) -> None:
    source, target, twin = trained(**VARIANTS[before]), build(**VARIANTS[now]), build(**VARIANTS[now])
    state, fresh = copy.deepcopy(source.state_dict()), copy.deepcopy(target.state_dict())
    random = torch.get_rng_state()
    result = transfer(target, source)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(state[name], tensor) for name, tensor in source.state_dict().items())
    check(result, target)
    assert any(".trunk.blocks." in name for name in result.names("kept"))
    for name, tensor in target.state_dict().items():
        if name in result.names("kept"):
            assert torch.equal(tensor, state[name])
        if name.endswith("positions") and "context" not in name:
            assert torch.equal(tensor, fresh[name])  # the target's own table
    assert all(bool(output.isfinite().all()) for output in outputs(target))
    assert transfer(twin, source) == result
    assert all(torch.equal(a, b) for a, b in zip(target.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
def test_the_same_architecture_computes_the_same_bits(options: dict[str, Any]) -> None:
    source, target = trained(**options), build(**options)
    result = transfer(target, source)
    assert set(result.names("kept")) == {name for name, _ in target.named_parameters()}
    assert all(torch.equal(a, b) for a, b in zip(outputs(target), outputs(source), strict=True))


# classes


def test_classes_are_matched_by_name() -> None:
    source, target = trained(), build(num_classes=5)
    result = transfer(target, source, target_classes=("owl", "fox", "cat", "ape", "elk"), source_classes=ANIMALS)
    check(result, target)
    assert "2 of 5 classes by name, 3 new, 1 of the model's left out" in "\n".join(result.summary())
    assert not result.notes
    assert_close(outputs(target), outputs(source), 1e-6)  # the null class
    ours, theirs = outputs(target, torch.tensor([1, 2, 5, 5])), outputs(source, torch.tensor([2, 0, 3, 3]))
    assert_close(ours, theirs, 1e-6)
    for network in NETWORKS:
        table = getattr(target, network).trunk.labels.table.weight.detach()
        new = table[[0, 3, 4]] - table[-1]
        assert 0.005 < new.std() < 0.05  # near the null class, and each another
        assert torch.pdist(new).min() > 0.03


def test_the_same_classes_in_another_order() -> None:
    source, target = trained(), build()
    result = transfer(target, source, target_classes=("fox", "cat", "dog"), source_classes=ANIMALS)
    assert set(result.names("adapted")) == {f"{n}.trunk.labels.table.weight" for n in NETWORKS}
    ours, theirs = outputs(target, torch.tensor([0, 1, 2, 3])), outputs(source, torch.tensor([2, 0, 1, 3]))
    assert_close(ours, theirs, 1e-6)


def test_classes_without_names_are_matched_by_number() -> None:
    source, target = trained(), build(num_classes=2)
    result = transfer(target, source, target_classes=("a", "b"))
    assert any("by number" in note for note in result.notes)
    assert "2 of 2 classes by number, 0 new, 1 of the model's left out" in "\n".join(result.summary())
    labels = torch.tensor([0, 1, 0, 1])
    assert_close(outputs(target, labels), outputs(source, labels), 1e-6)


# with and without classes


@pytest.mark.parametrize("context", [0, 2])
def test_conditional_from_unconditional_keeps_what_the_blocks_compute(context: int) -> None:
    source, target = trained(num_classes=0, in_context_tokens=context), build(in_context_tokens=context)
    result = transfer(target, source)
    check(result, target)
    assert not result.names("dropped") or context
    assert_close(trunks(target), trunks(source))
    for ours, theirs in zip(trunks(target, torch.tensor([0, 1, 2, 3])), trunks(source), strict=True):
        # in-context tokens are the class embedding, so that classes differ a little from the start
        assert (ours - theirs).norm() <= (0.2 if context else 1e-5) * theirs.norm()


@pytest.mark.parametrize("context", [0, 2])
def test_unconditional_from_conditional_is_the_null_class(context: int) -> None:
    source, target = trained(in_context_tokens=context), build(num_classes=0, in_context_tokens=context)
    result = transfer(target, source)
    check(result, target)
    assert not result.names("dropped") and not result.names("fresh")  # all of it is in the target
    assert_close(trunks(target), trunks(source), 1e-4)


@pytest.mark.parametrize("classes", [0, 3])
def test_the_output_norm_comes_and_goes_nearly_unnoticed(classes: int) -> None:
    """Its gain undoes it for tokens of the typical size, which those of generated pictures have."""
    source, target = trained(num_classes=3 - classes), build(num_classes=classes)
    transfer(target, source)

    def behind(model: SphereAutoencoder, network: str, x: Tensor) -> Tensor:
        """What the output norm, if any, and the next linear make of tokens."""
        part = getattr(model, network)
        if part.output is not None:
            x = part.output(x, part.trunk.labels(None, x.shape[0]))
        projected: Tensor = part.project(x) if network == "encoder" else part.head.linear(x)
        return projected

    with torch.no_grad():
        for network, x in zip(NETWORKS, trunks(source), strict=True):
            ours, theirs = (behind(model, network, x) for model in (target, source))
            assert (ours - theirs).norm() < 0.3 * theirs.norm()


# pictures and latents


def test_another_image_size_keeps_everything_but_the_mixing_of_tokens() -> None:
    source, target = trained(), build(image_size=16)
    result = transfer(target, source)
    assert all("token_mlp" in name or "token_gain" in name for name in result.names("fresh"))
    assert not result.names("adapted") and not result.names("dropped")
    for name, parameter in target.named_parameters():
        if name.endswith("token_gain"):
            assert parameter.item() == 0
    assert "tokens 4 -> 16" in "\n".join(result.summary())
    # one token everywhere: without positions, mixing and neighbours, more of it are the same
    patch = images(source, 1)[:, :, :4, :4]
    small, large = patch.repeat(1, 1, 2, 2), patch.repeat(1, 1, 4, 4)
    with torch.no_grad():
        assert_close((target.encoder.patches(large)[0, :1],), (source.encoder.patches(small)[0, :1],))


def resized(pictures: Tensor, patch: int, size: int) -> Tensor:
    """Each patch of pictures for itself, brought to another size."""
    count, channels, side, _ = pictures.shape
    grid = side // patch
    tiles = functional.unfold(pictures, patch, stride=patch).transpose(1, 2).reshape(-1, channels, patch, patch)
    tiles = functional.interpolate(tiles, size=(size, size), mode="bilinear", align_corners=False)
    flat = tiles.reshape(count, grid * grid, -1).transpose(1, 2)
    return functional.fold(flat, grid * size, size, stride=size)


def test_larger_pictures_in_larger_patches_are_the_same_pictures() -> None:
    source, target = trained(), build(image_size=16, patch_size=8)
    result = transfer(target, source)
    check(result, target)
    assert not result.names("fresh")
    pictures = images(source)
    with torch.no_grad():
        assert_close((target.encoder(resized(pictures, 4, 8)),), (source.encoder(pictures),), 1e-4)
        painted = [
            functional.pixel_shuffle(m.decoder.head.linear(x).transpose(1, 2).unflatten(2, (2, 2)), m.config.patch)
            for m, x in ((source, trunks(source)[1]), (target, trunks(source)[1]))
        ]
        assert_close((painted[1],), (resized(painted[0], 4, 8),), 1e-4)


@pytest.mark.parametrize("head", ["linear", "conv"])
def test_colour_from_grey_paints_grey(head: str) -> None:
    source, target = trained(image_channels=1, pixel_head=head), build(pixel_head=head)
    result = transfer(target, source)
    check(result, target)
    assert not result.names("fresh")
    pictures = images(source)
    with torch.no_grad():
        assert_close((target(pictures.repeat(1, 3, 1, 1)),), (source(pictures).repeat(1, 3, 1, 1),), 1e-4)


@pytest.mark.parametrize("head", ["linear", "conv"])
def test_grey_from_colour_sees_the_same(head: str) -> None:
    source, target = trained(pixel_head=head), build(image_channels=1, pixel_head=head)
    check(transfer(target, source), target)
    pictures = images(target)
    with torch.no_grad():
        assert_close((target.encoder(pictures),), (source.encoder(pictures.repeat(1, 3, 1, 1)),), 1e-4)
        if head == "conv":
            raw = [torch.atanh(model.decoder(points(source)).double()) for model in (source, target)]
            assert_close((raw[1],), (raw[0].mean(1, keepdim=True),), 1e-4)


def test_a_conv_head_at_another_patch_paints_about_the_same() -> None:
    source = trained(pixel_head="conv", image_size=32, patch_size=8)
    target = build(pixel_head="conv", image_size=64, patch_size=16)
    check(transfer(target, source), target)
    with torch.no_grad():
        small, large = (model.decoder(points(source)) for model in (source, target))
    wanted = functional.interpolate(small, scale_factor=2, mode="bilinear", align_corners=False)
    assert (large - wanted).norm() < 0.5 * wanted.norm()  # of random kernels, which are anything but smooth


def test_other_latents_start_fresh_without_random_mixing() -> None:
    target = build(latent_channels=6)
    result = transfer(target, trained())
    fresh = {part.name: part.reason for part in result.parts if part.fate == "fresh"}
    assert {name.rpartition(".")[0] for name in fresh} >= {"encoder.project", "decoder.embed"} - {
        "encoder.project.bias"
    }
    assert all(name.startswith(("encoder.project", "encoder.mixer", "decoder.embed")) for name in fresh)
    assert set(fresh.values()) == {"latent channels 4 -> 6"}
    assert target.encoder.mixer.blocks[0].channel_gain.item() == 0


# depth, width, settings


@pytest.mark.parametrize("classes", [0, 3])
def test_added_blocks_start_as_the_identity(classes: int) -> None:
    source = trained(num_classes=classes)
    target = build(
        num_classes=classes,
        encoder=TransformerSize(width=16, depth=3, heads=2),
        decoder=TransformerSize(width=24, depth=5, heads=2),
        decoder_mixer_depth=3,
    )
    result = transfer(target, source)
    check(result, target)
    assert all(".blocks." in name for name in result.names("fresh"))
    assert all(torch.equal(a, b) for a, b in zip(outputs(target), outputs(source), strict=True))


def test_deeper_and_conditional_at_once() -> None:
    source = trained(num_classes=0)
    target = build(encoder=TransformerSize(width=16, depth=4, heads=2))
    check(transfer(target, source), target)
    assert_close(trunks(target, torch.tensor([0, 1, 2, 3])), trunks(source))
    source, target = trained(), build(num_classes=0, decoder=TransformerSize(width=24, depth=4, heads=2))
    check(transfer(target, source), target)
    assert_close(trunks(target), trunks(source), 1e-4)


def test_surplus_blocks_are_dropped_and_named() -> None:
    source, target = trained(), build(decoder=TransformerSize(width=24, depth=1, heads=2), decoder_mixer_depth=0)
    result = transfer(target, source)
    check(result, target)
    dropped = result.names("dropped")
    assert {name.split(".")[3] for name in dropped if "trunk" in name} == {"1", "2"}
    assert result.count("dropped") == size(source) - size(target)
    assert "only 1 of its 3 blocks have a place" in "\n".join(result.summary())


def test_one_network_of_another_width_leaves_the_other_alone() -> None:
    source, target = trained(), build(encoder=TransformerSize(width=32, depth=2, heads=2))
    result = transfer(target, source)
    check(result, target)
    assert all(name.startswith("encoder") for name in result.names("fresh"))
    with torch.no_grad():
        assert torch.equal(target.decoder(points(target)), source.decoder(points(source)))
    assert "width 16 -> 32" in "\n".join(result.summary())


def test_settings_that_no_weight_shows_are_noted() -> None:
    target = build(
        decoder=TransformerSize(width=24, depth=3, heads=3),
        output_activation="none",
        spherify_decoder_blocks=True,
    )
    notes = "\n".join(transfer(target, trained()).notes)
    assert all(word in notes for word in ("decoder heads 2 -> 3", "tanh -> none", "spherified"))
    assert "in-context tokens 0 -> 2" in "\n".join(transfer(build(in_context_tokens=2), trained()).notes)
    other = transfer(build(prior="gaussian", latent_norm="batch"), trained()).notes
    assert "prior sphere -> gaussian: weights are kept" in other[-2]
    assert "latent_norm none -> batch: weights are kept" in other[-1]


def test_statistics_of_a_batch_norm_come_along_where_channels_are_the_same() -> None:
    source, target, other = (
        trained(latent_norm="batch"),
        build(latent_norm="batch"),
        build(latent_norm="batch", latent_channels=6),
    )
    source.train()
    state = copy.deepcopy(source.state_dict())
    transfer(target, source)
    transfer(other, source)
    transfer(build(latent_norm="batch", num_classes=0), source)  # measures token sizes, by a pass through the source
    assert source.training
    assert all(torch.equal(state[name], tensor) for name, tensor in source.state_dict().items())
    assert target.encoder.norm is not None and other.encoder.norm is not None
    assert torch.equal(target.encoder.norm.running_mean, state["encoder.norm.running_mean"])
    assert torch.equal(target.encoder.norm.running_variance, state["encoder.norm.running_variance"])
    assert torch.equal(other.encoder.norm.running_variance, torch.ones(6))


# mistakes and facts


def test_a_model_of_which_nothing_fits_is_refused() -> None:
    target = build(
        encoder=TransformerSize(width=32, depth=2, heads=2), decoder=TransformerSize(width=32, depth=2, heads=2)
    )
    before = copy.deepcopy(target.state_dict())
    with pytest.raises(ConfigError, match=r"16 and 24 wide.* 32 and 32; set model\.encoder") as caught:
        transfer(target, trained())
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in target.state_dict().items())


def test_broken_weights_are_refused() -> None:
    source = trained()
    with torch.no_grad():
        source.decoder.head.linear.weight[3, 5] = float("nan")
    with pytest.raises(ModelFileError, match=r"decoder\.head\.linear\.weight.*not finite"):
        transfer(build(), source)
    source = trained(latent_norm="batch")
    assert source.encoder.norm is not None
    source.encoder.norm.running_mean[0] = float("inf")
    with pytest.raises(ModelFileError, match=r"encoder\.norm\.running_mean.*not finite"):
        transfer(build(latent_norm="batch"), source)


@pytest.mark.parametrize("options", [{}, {"num_classes": 0}, {"patch_size": 2}], ids=["same", "null", "patch"])
def test_a_model_in_a_half_type_is_read_in_float32(options: dict[str, Any]) -> None:
    source, target, wide = trained().to(torch.bfloat16), build(**options), build(**options)
    transfer(target, source)
    assert {parameter.dtype for parameter in source.parameters()} == {torch.bfloat16}
    transfer(wide, copy.deepcopy(source).float())
    assert {parameter.dtype for parameter in target.parameters()} == {torch.float32}
    assert all(torch.equal(a, b) for a, b in zip(target.parameters(), wide.parameters(), strict=True))


def test_provenance_is_inherited() -> None:
    bare = inherited_provenance("animals", ModelInfo())
    assert bare == {"base_model": "animals"}
    known = ModelInfo(training={"recipe": "flowers"}, provenance={"source": "its.pth", "license": "cc-by-4.0"})
    assert inherited_provenance("me/flowers", known) == {
        "base_model": "me/flowers (recipe flowers)",
        "source": "its.pth",
        "license": "cc-by-4.0",
    }
    second = ModelInfo(training={"recipe": "mine"}, provenance={"base_model": "me/flowers"})
    assert inherited_provenance(str(Path("runs") / "mine"), second)["base_model"].endswith(
        "(recipe mine, fine-tuned from me/flowers)"
    )
