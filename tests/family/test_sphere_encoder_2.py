"""Sphere Encoder 2: its networks, their cost, its guidance; denoisers and Frechet losses against golden tensors."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from spheregen.errors import ConfigError, ModelFileError
from spheregen.family.registry import blank_model, cost_of
from spheregen.family.sphere_encoder_2.config import ENCODERS, SphereEncoder2Config
from spheregen.family.sphere_encoder_2.features import FeatureConfig, affine, build_features, most_shift, shifted
from spheregen.family.sphere_encoder_2.frechet import FrechetConfig, FrechetLoss
from spheregen.family.sphere_encoder_2.loss import SphereEncoder2Objective, logit_distances
from spheregen.family.sphere_encoder_2.network import PretrainedEncoder, SphereEncoder2
from spheregen.family.sphere_encoder_2.score import (
    ScoreConfig,
    ScoreMatching,
    ScoreNet,
    moments_of,
    precondition,
    pull_loss,
)
from spheregen.family.sphere_encoder_2.terms import SphereEncoder2LossConfig
from spheregen.networks.encoders import EncoderConfig, build_encoder
from spheregen.networks.perceptual import random_perceptual
from spheregen.nn.sizes import TransformerSize
from spheregen.sampling import sample
from spheregen.sphere import angle_between
from tests.folders.published_2 import DINO, model_of
from tests.random_networks import import_or_skip

SIZE = TransformerSize(width=32, depth=2, heads=2)
OWN: dict[str, Any] = {"image_size": 16, "patch_size": 4, "encoder": SIZE, "decoder": SIZE, "latent_channels": 8}
FROZEN = EncoderConfig(kind="feature_net", stage=3)


def own(**options: Any) -> SphereEncoder2:
    torch.manual_seed(0)
    return SphereEncoder2(SphereEncoder2Config(**{**OWN, "num_classes": 4, **options}))


# networks -------------------------------------------------------------------------------------------------------------


def test_at_the_start_decodes_and_own_latents_are_zero() -> None:
    model = own().requires_grad_(False)
    images = torch.rand(2, 3, 16, 16)
    assert not model.encoder(images).any()
    assert not model.decode(torch.randn(2, *model.latent_shape), torch.tensor([0, 1]), angle=30).any()
    last, first = model.decoder.angle.outer.weight, model.decoder.angle.inner.weight
    assert not last.any() and first.std() == pytest.approx(0.02, rel=0.1)
    alone = own(num_classes=0, angle_condition="adaln").requires_grad_(False)
    assert alone.decoder.angle.outer.weight.std() == pytest.approx(0.02, rel=0.1)
    assert model.decoder.embed.weight.std() == pytest.approx(8**-0.5, rel=0.1)


@pytest.mark.parametrize("mode", ["none", "adaln", "token", "both"])
@pytest.mark.parametrize("classes", [0, 4])
@torch.no_grad()
def test_the_decoder_is_told_what_it_shall_be(mode: Any, classes: int) -> None:
    model = model_of(frozen=False, angle_condition=mode, num_classes=classes, image_size=32)
    points = torch.randn(3, *model.latent_shape)
    labels = torch.tensor([0, 1, 3]) if classes else None
    clean, turned = (model.decode(points, labels, angle=each) for each in (0.0, 80.0))
    assert torch.equal(clean, turned) == (mode == "none")
    each = model.decode(points, labels, angle=torch.tensor([0.0, 80.0, 0.0]))
    together = torch.stack([clean[0], turned[1], clean[2]])
    torch.testing.assert_close(each, together, rtol=0, atol=1e-5)
    beyond = model_of(frozen=False, angle_condition=mode, num_classes=classes, max_angle=60.0)
    torch.testing.assert_close(*(beyond.decode(points, labels, angle=each) for each in (60.0, 85.0)))  # it saturates
    if classes:
        assert not torch.equal(model.decode(points, labels, angle=80), model.decode(points, None, angle=80))


@torch.no_grad()
def test_stochastic_depth_of_all_ones_changes_nothing_and_of_zeros_leaves_the_ends() -> None:
    model = model_of(frozen=False)
    points, labels = torch.randn(2, *model.latent_shape), torch.tensor([0, 1])
    plain = model.decoder(points, labels, 0.5)
    torch.testing.assert_close(model.decoder(points, labels, 0.5, kept=torch.ones(2, 2, 2)), plain)
    blocks = model.decoder.trunk.blocks
    bare = model.decoder(points, labels, 0.5, kept=torch.zeros(2, 2, 2))
    model.decoder.trunk.blocks = nn.ModuleList()
    torch.testing.assert_close(model.decoder(points, labels, 0.5), bare)
    model.decoder.trunk.blocks = blocks
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(model.encoder(images, kept=torch.ones(2, 2, 2)), model.encoder(images))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pretrained": "dinov3-vits16pluss"}, "did you mean 'dinov3-vits16plus'"),
        ({"pretrained": FROZEN, "compression": 2.0}, "compression"),
        ({"pretrained": FROZEN, "image_size": 18, "patch_size": None}, "multiple of 4"),
        ({"pretrained": FROZEN, "patch_size": 8}, "do not divide"),
        ({"has_encoder": False}, "has_encoder"),
        ({"max_angle": 91.0}, "max_angle"),
        ({"sampling_angle": 0.0}, "sampling_angle"),
        ({"latent_channels": None, "compression": 1000.0}, "no latent channel"),
        ({"in_context_tokens": 1, "decoder": dataclasses.replace(SIZE, in_context_start=2)}, "decoder's in-context"),
        ({"sphere": "locale"}, "sphere"),
    ],
    ids=str,
)
def test_impossible_configurations_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        SphereEncoder2Config(**{**OWN, **options})


@pytest.mark.parametrize("name", ["dinov3-vits16plus", "dinov2-small", "siglip2-base"])
def test_frozen_encoders_of_transformers_have_the_shapes_that_are_told(name: str) -> None:
    pytest.importorskip("transformers")
    config = SphereEncoder2Config(image_size=256, pretrained=name, decoder=SIZE)
    with torch.device("meta"):
        model = blank_model(config)
        assert model.encoder(torch.empty(1, 3, 256, 256)).shape == (1, *model.latent_shape)  # type: ignore[operator]
    assert config.tokens == 256 and config.channels == (768 if name == "siglip2-base" else 384)


@torch.no_grad()
def test_an_encoder_of_transformers_sees_clamped_images_of_its_size() -> None:
    pytest.importorskip("transformers")
    seen = EncoderConfig(kind="transformers", config=DINO, input_size=64, filter="bilinear", clamp=True)
    torch.manual_seed(0)
    encoder = build_encoder(seen, pretrained=False)
    images = 3 * torch.rand(2, 3, 64, 64) - 1.5
    torch.testing.assert_close(encoder(images), encoder(images.clamp(-1, 1)))
    assert encoder(torch.rand(1, 3, 32, 32)).shape == (1, 16, 64)


def test_gradients_reach_images_through_a_frozen_encoder_and_not_its_weights() -> None:
    config = SphereEncoder2Config(image_size=16, pretrained=FROZEN, decoder=SIZE, latent_channels=5)
    frozen = build_encoder(FROZEN, pretrained=True)
    model = SphereEncoder2(config, PretrainedEncoder(config, frozen)).train()
    images = torch.rand(1, 3, 16, 16).requires_grad_()
    model.encoder(images).sum().backward()
    assert images.grad is not None and images.grad.any()
    assert all(parameter.grad is None for parameter in frozen.parameters()) and not frozen.training
    assert model.encoder.adapter.linear.weight.grad is not None


COSTS = (
    ("base", 256, 131.39e6, 46.44, 44.03),
    ("base", 512, 133.17e6, 47.35, 44.93),
    ("large", 256, 459.27e6, 161.95, 155.51),
    ("large", 512, 461.63e6, 163.16, 156.71),
)


@pytest.mark.parametrize(("size", "pixels", "parameters", "counted", "plain"), COSTS)
def test_cost_and_parameters_are_those_published(
    size: str, pixels: int, parameters: float, counted: float, plain: float
) -> None:
    config = SphereEncoder2Config(
        image_size=pixels, pretrained="dinov3-vits16plus", has_encoder=False, decoder=size, num_classes=1000
    )
    with torch.device("meta"):
        cost = cost_of(blank_model(config))
    decoder = cost.parts["decoder"]
    assert decoder.params == pytest.approx(parameters, rel=1e-3)
    assert decoder.counted_gflops == pytest.approx(counted, rel=1e-2)
    assert decoder.gflops == pytest.approx(plain, rel=1e-2)
    assert cost.generation_gflops(2, guided=True) == pytest.approx(3 * decoder.gflops)


# sampling -------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_first_decode_of_pure_noise_is_told_the_sampling_angle() -> None:
    model = model_of(frozen=False)
    noise, labels = torch.randn(2, *model.latent_shape), torch.tensor([0, 1])
    told = model.decode(model.prior.project(noise), labels, angle=85.5)
    assert torch.equal(sample(model, noise, labels, steps=1).images, told.clamp(-1, 1))
    assert own(decoder=dataclasses.replace(SIZE, width=1024)).start_angle == 84
    assert own(sampling_angle=70.0).start_angle == own(max_angle=70.0).start_angle == 70


def test_guidance_turns_by_its_angle_from_the_second_step_on() -> None:
    model = model_of(frozen=False)
    noise, labels = torch.randn(2, *model.latent_shape), torch.tensor([0, 1])
    one, two = ([sample(model, noise, labels, steps=steps, guidance=g).images for g in (0.0, 20.0)] for steps in (1, 2))
    assert torch.equal(*one) and not torch.equal(*two)
    with pytest.raises(ConfigError, match="give labels"):
        sample(model, noise, None, steps=2, guidance=5.0)
    with pytest.raises(ConfigError, match="from 0 to 90"):
        sample(model, noise, labels, steps=2, guidance=91.0)
    shared = sample(model, noise, labels, steps=3, guidance=5.0, step_noise=noise)
    assert torch.equal(shared.images, sample(model, noise, labels, steps=3, guidance=5.0).images)
    alone = [sample(model, noise[i : i + 1], labels[i : i + 1], steps=3, guidance=5.0).images for i in (0, 1)]
    torch.testing.assert_close(torch.cat(alone), shared.images, rtol=0, atol=1e-5)


# golden denoisers and Frechet losses ----------------------------------------------------------------------------------

SCORE_NAMES = (
    (r"\.attention_norm\.", ".norm1."), (r"\.mlp_norm\.", ".norm2."), (r"\.attention\.qkv\.", ".attn.qkv."),
    (r"\.attention\.out\.", ".attn.proj."), (r"\.attention\.(q|k)_norm\.", r".attn.\1_norm."),
    (r"\.mlp\.gate_value\.", ".mlp.w12."), (r"\.mlp\.out\.", ".mlp.w3."),
    (r"\.modulation\.linear\.", ".adaLN_modulation.1."), (r"^embed\.", "in_proj."), (r"^positions$", "pos_embed"),
    (r"^sigma\.inner\.", "sigma_embed.mlp.0."), (r"^sigma\.outer\.", "sigma_embed.mlp.2."),
    (r"^labels\.", "class_embed."), (r"^norm\.", "norm_out."),
)  # fmt: skip
TINY = ScoreConfig(
    width=32, margin=0, heads=2, calibration_steps=2, balance_steps=2, start=0.0, ramp=(0.2, 0.6), path_drop=0.0
)


def fill(net: ScoreNet, weights: dict[str, Tensor], prefix: str = "") -> ScoreNet:
    names = {}
    for name in net.state_dict():
        theirs = name
        for pattern, replacement in SCORE_NAMES:
            theirs = re.sub(pattern, replacement, theirs)
        names[name] = prefix + theirs
    assert set(names.values()) == {name for name in weights if name.startswith(prefix)}
    net.load_state_dict({name: weights[theirs] for name, theirs in names.items()})
    return net


def same(made: Tensor, golden: Tensor) -> None:
    scale = golden.abs().max().clamp_min(1e-30)
    assert ((made.detach() - golden).abs().max() / scale).item() < 1e-5


def golden(shared: Path, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    folder = shared / "golden" / "sphere2" / name
    return load_file(folder / "io.safetensors"), json.loads((folder / "config.json").read_text())


@torch.no_grad()
def test_the_golden_denoiser(shared: Path) -> None:
    io, _ = golden(shared, "score-net")
    weights = load_file(shared / "golden" / "sphere2" / "score-net" / "weights.safetensors")
    net, sigma = fill(ScoreNet(24, 16, 5, TINY), weights), io["sigma"].flatten()
    same(net(io["x_t"], sigma, io["labels"]), io["output"])
    for name, made in zip(("c_skip", "c_out", "c_in", "c_noise"), precondition(io["sigma"]), strict=True):
        same(made, io[f"precondition/{name}"])
    same(net.told(precondition(sigma)[3], None), io["sigma_embedding"])


def test_golden_distribution_matching(shared: Path) -> None:
    io, _ = golden(shared, "score-matching")
    weights = load_file(shared / "golden" / "sphere2" / "score-matching" / "weights.safetensors")
    matching = ScoreMatching(TINY, [(16, 24), (4, 40)], 5)
    for kind, nets in (("real", matching.real), ("fake", matching.fake)):
        for layer, net in enumerate(nets):
            fill(net, weights, f"{kind}_score_nets.{layer}.")  # type: ignore[arg-type]
    for step in range(3):
        given = {name.removeprefix(f"step{step}/"): each for name, each in io.items() if name.startswith(f"step{step}")}
        labels, layers = given["labels"], range(2)
        high = 1 - SphereEncoder2LossConfig().low(given["angle_rad"])
        same(high, given["weight_high"])
        share = high * len(high) / (high.sum() + 1e-8)
        raw = [given[f"layer{layer}/fake"].clone().requires_grad_() for layer in layers]
        matching.observe([moments_of(given[f"layer{layer}/real"]) for layer in layers])
        real = matching.standardised([given[f"layer{layer}/real"] for layer in layers])
        fake = matching.standardised(raw)
        losses, pulls = [], []
        for layer in layers:
            same(real[layer], given[f"layer{layer}/real_standardised"])
            same(fake[layer], given[f"layer{layer}/fake_standardised"])
            drawn = {name: given[f"layer{layer}/transport/{name}"] for name in ("sigma_normal", "noise")}
            pulls.append(matching.pull(layer, fake[layer], drawn["sigma_normal"], drawn["noise"], labels))
            for name, made in (("sigma", "sigma"), ("pred_real", "real"), ("pred_fake", "fake"), ("rms", "rms")):
                same(getattr(pulls[-1], made), given[f"layer{layer}/transport/{name}"])
            same(pulls[-1].normaliser, given[f"layer{layer}/transport/normalizer"])
            same(pulls[-1].change, given[f"layer{layer}/transport/grad"])
            losses.append((share * pull_loss(fake[layer], pulls[-1].change)).mean())
            same(losses[-1], given[f"layer{layer}/transport/loss"])
        balance = matching.weigh(torch.stack([pull.rms.mean() for pull in pulls]))
        same(balance, given["balance/weights"])
        same(matching.target, given["balance/target"])
        strength = TINY.strength(given["epoch"].item() / 10)
        assert strength == pytest.approx(given["warmup_scale"].item(), rel=1e-5)
        total = strength * (balance * torch.stack(losses)).mean()
        same(total, given["generator_loss"])
        for layer, gradient in enumerate(torch.autograd.grad(total, raw)):
            same(gradient, given[f"layer{layer}/gradient_on_fake"])
        for kind, features in (("real", real), ("fake", fake)):
            made = []
            for layer in layers:
                drawn = {name: given[f"layer{layer}/dsm_{kind}/{name}"] for name in ("sigma_normal", "noise")}
                each = matching.denoising(
                    layer, features[layer], drawn["sigma_normal"], drawn["noise"], labels, real=kind == "real"
                )
                made.append(each.mean() if kind == "real" else (share * each).mean())
            same(torch.stack(made), given[f"dsm/{kind}"])


def test_golden_frechet_losses(shared: Path) -> None:
    io, config = golden(shared, "frechet-loss")
    for case, how in config["cases"].items():
        loss = FrechetLoss(
            config["dim"],
            FrechetConfig(
                pool=how["pool"],
                norm_eps=how.get("norm_eps", 0.01),
                keeps_real=how.get("use_clean_ema", True),
                keeps_generated=how.get("use_noisy_ema", False),
            ),
            "golden",
        )
        batches = [[io[f"batch{number}/{name}"] for name in ("clean", "generated", "weight")] for number in range(3)]
        if how["warm_up_with_batch0"]:
            loss.gather(*batches[0], lambda _, each: each)
            loss.commit()
        for call in (1, 2):
            real, generated, weights = batches[call]
            generated = generated.clone().requires_grad_()
            value, raw = loss.measure(real, generated, weights, lambda _, each: each)
            (gradient,) = torch.autograd.grad(value, generated)
            loss.commit()
            made = {"loss": value, "raw": raw.float(), "gradient": gradient}
            for name, history in (("clean", loss.real), ("noisy", loss.generated)):
                assert history.count == io[f"{case}/call{call}/_n_{name}_ema"]
                if history.count:
                    made |= {f"mu_{name}_ema": history.mean, f"m2_{name}_ema": history.second}
            for name, each in made.items():
                same(each, io[f"{case}/call{call}/{name}"])


# the objective --------------------------------------------------------------------------------------------------------


def test_every_batch_has_one_exact_zero_and_one_largest_angle_and_weights_of_mean_one() -> None:
    objective = SphereEncoder2Objective(own(), SphereEncoder2LossConfig(perceptual=0))
    noise = objective.draw(16, torch.Generator().manual_seed(0))
    degrees = torch.rad2deg(noise.angle).sort().values
    assert degrees[0] == 0 and degrees[-1] == pytest.approx(90, abs=1e-4) and (degrees == 0).sum() == 1
    assert (degrees[1:-1] // (90 / 14)).tolist() == list(range(14))
    for share in (noise.low, noise.high, noise.share):
        assert share.mean().item() == pytest.approx(1, abs=1e-5)
    assert noise.kept is not None and noise.kept.shape == (16, 2, 2)
    assert ((noise.kept == 0).sum(dim=0) == 2).all() and noise.kept.max().item() == pytest.approx(16 / 14)
    parts = [objective.draw(16, torch.Generator().manual_seed(0), rows) for rows in (slice(0, 8), slice(8, 16))]
    for name in ("angle", "noise", "low", "kept", "kept_encoder"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(noise, name))
    for count in (1, 2):
        assert objective.draw(count, torch.Generator().manual_seed(0)).angle.shape == (count,)


def test_terms_have_the_gradients_of_their_regimes() -> None:
    model = own(num_classes=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    config = SphereEncoder2LossConfig(perceptual=0, latent_consistency=1.0, regime="hard", path_drop=0)
    objective = SphereEncoder2Objective(model, config)
    noise = objective.draw(6, torch.Generator().manual_seed(0))
    images = torch.rand(6, 3, 16, 16)
    decoded: list[Tensor] = []
    model.decoder.register_forward_hook(lambda _, __, output: (output.retain_grad(), decoded.append(output))[0])
    found = objective.loss(images, None, noise)
    low = (torch.rad2deg(noise.angle) <= 70).tolist()
    assert not all(low) and any(low)
    found.total.backward()
    assert decoded[0].grad is not None
    touched = decoded[0].grad.flatten(1).abs().sum(dim=1) > 0
    assert touched.all()
    only = SphereEncoder2Objective(model, dataclasses.replace(config, latent_consistency=0.0))
    decoded.clear()
    only.loss(images, None, noise).total.backward()
    assert (decoded[0].grad.flatten(1).abs().sum(dim=1) > 0).tolist() == low  # type: ignore[union-attr]


def test_the_classifier_term_acts_at_all_angles_and_sees_one_affine_map() -> None:
    perceptual = random_perceptual("builtin")
    model = own(num_classes=0)
    objective = SphereEncoder2Objective(model, SphereEncoder2LossConfig(latent_consistency=0, path_drop=0), perceptual)
    noise = objective.draw(4, torch.Generator().manual_seed(0))
    assert noise.affine is not None
    y, x = torch.rand(4, 3, 16, 16).requires_grad_(), torch.rand(4, 3, 16, 16)
    objective._perceptual(perceptual, y, x, torch.zeros(4), noise.affine).backward()
    assert (y.grad.flatten(1).abs().sum(dim=1) > 0).all()  # type: ignore[union-attr]
    images = torch.rand(2, 3, 16, 16)
    still = torch.tensor([[1.0, 0, 0, 1], [-1.0, 0, 0, 1]])
    moved = affine(images, still)
    torch.testing.assert_close(moved[0], images[0])
    torch.testing.assert_close(moved[1], images[1].flip(-1))
    right = affine(images, torch.tensor([[1.0, 0.25, 0, 1]]).expand(2, 4))
    torch.testing.assert_close(right[..., 4:], images[..., :-4])
    assert not logit_distances(torch.randn(3, 7), torch.randn(3, 7) * 0 + torch.arange(7.0)).isnan().any()


def test_images_are_moved_by_whole_pixels_with_reflection() -> None:
    images = torch.rand(3, 1, 8, 8)
    none, flip = torch.zeros(3, 2, dtype=torch.int64), torch.tensor([False, True, False])
    assert torch.equal(shifted(images, none, flip)[1], images[1].flip(-1))
    moved = shifted(images, torch.tensor([[1, -2]]).expand(3, 2), torch.zeros(3, dtype=torch.bool))
    assert torch.equal(moved[:, :, :-1, 2:], images[:, :, 1:, :-2])
    assert torch.equal(moved[:, :, -1, 2:], images[:, :, -2, :-2]) and torch.equal(
        moved[:, :, 0, 0], images[:, :, 1, 2]
    )
    assert [most_shift(size, SphereEncoder2LossConfig().feature_shift) for size in (8, 32, 256)] == [0, 1, 4]
    with pytest.raises(ConfigError, match="feature_shift"):
        SphereEncoder2LossConfig(feature_shift=0.6)


def test_features_have_the_shapes_that_are_told() -> None:
    ours = FeatureConfig(layers=(0, 2))
    maps = build_features(ours, pretrained=True)(torch.rand(2, 1, 16, 16))
    assert (
        [tuple(each.shape) for each in maps]
        == [(2, *shape) for shape in ours.shapes(16)]
        == [(2, 256, 16), (2, 16, 96)]
    )
    pytest.importorskip("transformers")
    theirs = FeatureConfig(network="convnextv2-nano")
    images = torch.rand(1, 3, 64, 64).requires_grad_()
    found = build_features(theirs, pretrained=False)(images, final=True)
    assert [tuple(each.shape) for each in found[:2]] == [(1, *shape) for shape in theirs.shapes(64)]
    assert theirs.shapes(256) == [(1024, 160), (256, 320)] and found[2].shape == (1, 4, 640)
    found[0].sum().backward()
    assert images.grad is not None and images.grad.any()
    judge = FeatureConfig(network="inception", layers=(3,))
    with torch.device("meta"):
        assert build_features(judge, pretrained=False)(torch.empty(2, 3, 32, 32))[-1].shape == (2, *judge.shapes(32)[0])


@pytest.mark.parametrize(
    "options",
    [{"network": "vgg"}, {"layers": ()}, {"layers": (2, 1)}, {"layers": (4,)}, {"network": "inception"}],
    ids=str,
)
def test_impossible_features_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        FeatureConfig(**options)
    with pytest.raises(ConfigError, match="no whole grid"):
        FeatureConfig(layers=(3,)).shapes(8)


@pytest.mark.parametrize(
    "options",
    [
        {"ramp": (0.1, 0.2)},
        {"width": 0},
        {"start": 1.0},
        {"lr": 0.0},
        {"clip": -1.0},
        {"standardise": "token"},
    ],
    ids=str,
)
def test_impossible_denoisers_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"loss\.score"):
        ScoreConfig(**options)


def test_schedules_of_the_denoisers() -> None:
    config = ScoreConfig(start=0.5, ramp=(0.6, 0.8), lr_warmup=0.1, lr_decay=0.4)
    assert [config.strength(t) for t in (0.0, 0.59, 0.7, 0.8, 1.0)] == pytest.approx([0, 0, 0.5, 1, 1])
    assert config.learning_rate(0.49) == 0 and config.learning_rate(0.9) == pytest.approx(config.min_lr)
    assert config.learning_rate(0.55) == pytest.approx(0.5 * (5e-5 + 4.5e-4 * (1 + math.cos(math.pi / 8)) / 2))
    shared = ScoreNet(8, 4, 3, dataclasses.replace(TINY, modulation="shared"))
    x, sigma = torch.randn(2, 4, 8), torch.tensor([0.1, 2.0])
    torch.testing.assert_close(shared(x, sigma, torch.tensor([0, 2])), precondition(sigma)[0][:, None, None] * x)


def test_a_judge_compares_with_a_file(tmp_path: Path) -> None:
    import numpy as np

    path = tmp_path / "reference.npz"
    np.savez(path, mu=np.zeros(48), sigma=np.eye(48))
    config = SphereEncoder2LossConfig(
        perceptual=0, frechet_judge=0.1, judge=FeatureConfig(layers=(1,)), judge_reference=str(path)
    )
    judge = build_features(config.judge, pretrained=True)
    objective = SphereEncoder2Objective(own(), config, judge=judge)
    objective.prepare([], lambda value: [value])
    noise = objective.draw(16, torch.Generator().manual_seed(0))
    found = objective.loss(torch.rand(16, 3, 16, 16), torch.arange(16) % 4, noise)
    assert found.terms["frechet_judge"].item() == pytest.approx(1, abs=0.05)
    again = SphereEncoder2Objective(own(), config, judge=judge)
    again.load_state(objective.state())
    assert torch.equal(again.frechets["frechet_judge"].real.second, objective.frechets["frechet_judge"].real.second)  # type: ignore[union-attr]
    path.write_bytes(b"nothing")
    with pytest.raises(ModelFileError, match="no reference"):
        objective.prepare([], lambda value: [value])


def test_the_history_of_a_judge_begins_with_many_images_of_high_angles() -> None:
    torch.manual_seed(0)
    loss = FrechetLoss(3, FrechetConfig(keeps_generated=True, decay=0.9), "judge", ridge=0.0, seed=20)
    loss.set_reference(torch.zeros(3), torch.eye(3))
    seen = []
    for call in range(3):
        rows, weights = torch.randn(12, 3, requires_grad=True), torch.rand(12)
        seen.append(rows[weights >= 0.5].detach().double())
        found = loss(None, rows, weights, lambda _, each: each)
        assert (found > 0) == (call == 2)  # 12 and 24 of 20 images
        assert bool(torch.autograd.grad(found, rows)[0].any()) == (call == 2)
        before = loss.generated.mean.clone()
        loss.commit()
        if call < 2:
            torch.testing.assert_close(loss.generated.mean, torch.cat(seen).mean(dim=0))
    w = weights.double()[:, None]
    last = 0.9 * before + 0.1 * (w * rows.double()).sum(dim=0) / w.sum()
    torch.testing.assert_close(loss.generated.mean, last.detach())
    with pytest.raises(ConfigError, match="keeps_generated"):
        SphereEncoder2LossConfig(judge_seed=50_000)


def test_frechet_distances_of_class_tokens() -> None:
    import_or_skip("transformers")
    config = SphereEncoder2LossConfig(
        perceptual=0, path_drop=0, frechet_encoder=0.1, frechet=FrechetConfig(pool="cls", keeps_real=False)
    )
    model = model_of(latent_channels=12)
    objective = SphereEncoder2Objective(model, config)
    noise = objective.draw(8, torch.Generator().manual_seed(0))
    images, labels = 2 * torch.rand(8, 3, 32, 32) - 1, torch.arange(8) % 5
    found = objective.loss(images, labels, noise)
    frozen = model.encoder.frozen
    point = model.prior.perturb(model.encode(images), noise.noise, noise.angle)
    told = model.condition(labels).dropped(noise.dropped)
    real, ours = (frozen(each, class_token=True)[1] for each in (images, model.decoder(point, told, noise.angle)))
    assert ours.shape == (8, 64)
    expected = FrechetLoss(64, config.frechet, "by hand")(real, ours, noise.weight, lambda _, each: each)
    torch.testing.assert_close(found.terms["frechet_encoder"], expected.detach())
    found.total.backward()
    assert model.decoder.head.linear.weight.grad.abs().sum() > 0  # type: ignore[union-attr, operator]
    with pytest.raises(ConfigError, match="class token"):
        SphereEncoder2Objective(own(), config)


@torch.no_grad()
def test_points_of_token_spheres_move_token_by_token() -> None:
    model = model_of(frozen=False, sphere="token")
    v = model.encode(torch.rand(2, 3, 32, 32))
    assert torch.allclose(v.square().mean(dim=2), torch.ones(2, 16), atol=1e-3)
    half = model.prior.slerp(v, model.prior.project(torch.randn_like(v)), torch.tensor([0.0, 0.5]))
    assert torch.allclose(half.square().mean(dim=2), torch.ones(2, 16), atol=1e-3)
    assert angle_between(half[:1], v[:1]).item() == pytest.approx(0, abs=0.1)
    assert set(ENCODERS) >= {"dinov3-vits16plus", "dinov2-base", "siglip2-base"}
