"""Published checkpoints of Sphere Encoder 2: golden tensors through the command; made-up, foreign and broken ones."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

import spheregen as sg
from spheregen.cli.main import app
from spheregen.errors import ConfigError, ModelFileError
from spheregen.family.sphere_encoder_2.network import SphereEncoder2
from spheregen.family.sphere_encoder_2.terms import SphereEncoder2LossConfig
from spheregen.family.terms import latent_distances, pixel_distances
from spheregen.networks.encoders import published_name as hub_name
from spheregen.networks.frozen import IMAGENET_MEAN, IMAGENET_STD
from spheregen.nn.sizes import TransformerSize
from spheregen.sampling.loop import turn_away
from tests.fake_hub import FakeHub
from tests.folders.published import model_of as first_model
from tests.folders.published import published_state as first_state
from tests.folders.published import refuses
from tests.folders.published_2 import experiment, model_of, published_state, training_options
from tests.random_networks import import_or_skip, shake

TOLERANCE = 2e-5
NAMES = ("class-conditional-linear-head", "unconditional-conv-head")
convert, load = sg.interop.convert_sphere_encoder_2, sg.interop.load_sphere_encoder_2


def command(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["convert", "sphere-encoder-2", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


class Golden:
    """A folder of golden tensors and the model that the command makes of it."""

    def __init__(self, folder: Path, out: Path) -> None:
        self.io = load_file(folder / "io.safetensors")
        command("--weights", folder / "weights.safetensors", "--config", folder / "config.json", "--out", out)
        self.model: Any = sg.load(out)
        self.labels = self.io.get("labels")

    def same(self, name: str, made: Tensor) -> None:
        torch.testing.assert_close(made, self.io[name], rtol=0, atol=TOLERANCE, msg=lambda text: f"{name}: {text}")

    def unit(self, images: Tensor) -> Tensor:
        return ((images + 1) / 2).clamp(0, 1)


@pytest.fixture(scope="module", params=NAMES)
def golden(request: pytest.FixtureRequest, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Golden:
    return Golden(shared / "golden" / "sphere2" / request.param, tmp_path_factory.mktemp("golden") / "model")


@torch.no_grad()
def test_networks(golden: Golden) -> None:
    model, io, y = golden.model, golden.io, golden.labels
    assert isinstance(model, SphereEncoder2)
    golden.same("encoder_out", model.encoder(io["x"]))
    golden.same("latent", model.encode(io["x"]))
    golden.same("spherify_small", model.prior.project(0.01 * io["initial_noise"]))
    golden.same("angle_embedding", model.decoder.angle(io["angle_embedding/angle_rad"])[:, None])
    for name in io:
        if name.startswith("decoded"):
            of = None if "null" in name else y
            golden.same(name, model.decode(io["latent"], of, angle=float(name.partition("=")[2])))
    golden.same("noisy/latent", model.prior.perturb(io["latent"], io["noisy/noise"], io["noisy/angle_rad"]))
    decoded = model.decode(io["noisy/latent"], y, angle=io["noisy/angle_deg"])
    golden.same("noisy/decoded", decoded)
    golden.same("noisy/reencoded", model.encoder(decoded))
    golden.same("noisy/reencoded_latent", model.encode(decoded))
    if "noisy/decoded_training_head" in io:
        model.train()
        golden.same("noisy/decoded_training_head", model.decode(io["noisy/latent"], y, angle=io["noisy/angle_deg"]))
        model.eval()


def test_sampling(golden: Golden) -> None:
    for name in golden.io:
        if not name.startswith("generate/"):
            continue
        said = dict(part.split("=") for part in name.split("/") if "=" in part)
        samples = sg.sampling.sample(
            golden.model,
            golden.io["initial_noise"],
            labels=golden.labels,
            steps=int(said["steps"]),
            angle=84.0,
            loop_angle=float(said["loop"]) if "loop" in said else None,
            guidance=float(said["guidance"]),
            step_noise=None if said["noise"] == "cached" else list(golden.io["step_noise"]),
        )
        if name.endswith("step_images"):
            golden.same(name, golden.unit(torch.stack(samples.trajectory)))
        else:
            golden.same(name, golden.unit(samples.images))


@torch.no_grad()
def test_geometry_reconstruction_and_interpolation(golden: Golden) -> None:
    model, io, y = golden.model, golden.io, golden.labels
    for degrees in (5, 20):
        golden.same(
            f"rotate/deg={degrees}",
            turn_away(model.prior, io["latent"], io["rotate/reference"], math.radians(degrees)),
        )
    noise, other = (model.prior.project(each) for each in (io["initial_noise"], io["step_noise"][0]))
    between = model.prior.slerp(io["latent"], noise, 0.25)
    golden.same("slerp/t=0.25", between)
    golden.same("slerp/t=0.25/projected", model.prior.project(between))
    golden.same("reconstruct/angle=0", golden.unit(sg.sampling.reconstruct(model, io["x"], y)))
    turned = sg.sampling.reconstruct(model, io["x"], y, angle=45, noise=io["step_noise"][0])
    golden.same("reconstruct/angle=45", golden.unit(turned))
    for name in (each for each in io if each.startswith("reconstruct_loop")):
        of = None if "null" in name else y
        made = sg.sampling.revise(model, io["x"], of, steps=3, angle=30, step_noise=io["step_noise"][0])
        golden.same(name, golden.unit(torch.stack(made.trajectory)))
    places = torch.tensor([0, 0.5, 1]).repeat_interleave(4)
    for name in (each for each in io if each.startswith("interpolate")):
        start = noise.repeat(3, 1, 1)
        points = start if "fixed" in name else model.prior.slerp(start, other.repeat(3, 1, 1), places)
        condition = None
        if y is not None:
            ends = [model.condition(each.repeat(3)) for each in (y, (y + 1) % model.num_classes)]
            path = name.partition("class=")[2].partition("/")[0]
            condition = sg.sampling.mix_conditions(*ends, places, path)
        made = sg.sampling.sample(model, points, condition, steps=2, angle=84)
        golden.same(name, golden.unit(made.images).unflatten(0, (3, 4)))


def test_losses(golden: Golden) -> None:
    io = golden.io
    soft, hard = SphereEncoder2LossConfig(), SphereEncoder2LossConfig(regime="hard")
    angles = torch.deg2rad(io["regime/angle_deg"])
    golden.same("regime/soft_70_5/low", soft.low(angles))
    golden.same("regime/soft_70_5/high", 1 - soft.low(angles))
    golden.same("regime/hard_70/low", hard.low(angles))
    low = soft.low(io["noisy/angle_rad"])
    decoded, x = (io[name] / 2 + 0.5 for name in ("noisy/decoded", "x"))
    distances = {"pixel_l1": pixel_distances(decoded, x), "pixel_l2": pixel_distances(decoded, x, "l2")}
    distances["latent_consistency"] = latent_distances(io["noisy/reencoded_latent"], io["latent"])
    for name, each in distances.items():
        weights = {"low": low, "high": 1 - low, "all": torch.ones_like(low)}
        for regime in ("all", "high" if name == "latent_consistency" else "low"):
            w = weights[regime]
            golden.same(f"loss/{name}/{regime}", (w * each).sum() / (w.sum() + 1e-6))


# made-up checkpoints with a frozen encoder ----------------------------------------------------------------------------


def assert_same(made: Any, model: SphereEncoder2) -> None:
    ours = {name: each for name, each in made.state_dict().items() if not name.endswith("mask_token")}
    theirs = {name: each for name, each in model.state_dict().items() if not name.endswith("mask_token")}
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    noise = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([1, 4]) if model.num_classes else None
    made_images, images = (sg.sampling.sample(each, noise, labels, steps=2).images for each in (made, model))
    assert torch.equal(made_images, images)
    assert torch.equal(made.encode(images), model.encode(images))


def test_an_experiment_converts_samples_and_encodes_again(tmp_path: Path) -> None:
    model, raw = model_of(), model_of(seed=1)
    folder = experiment(tmp_path / "experiments" / "sphere2-base-flowers-64px", model, raw)
    output = command("--weights", folder, "--out", tmp_path / "ema", "--class-names", "a,b,c,d,e")
    assert "EMA weights" in output
    assert_same(sg.load(tmp_path / "ema"), model)
    weights = folder / "ckpt" / "ep1999.pth"
    command("--weights", weights, "--config", folder / "cfg.json", "--out", tmp_path / "raw", "--raw")
    assert_same(sg.load(tmp_path / "raw"), raw)
    pipe = sg.Pipeline.from_pretrained(tmp_path / "ema", device="cpu", quiet=True)
    assert pipe.generate(2, labels="b", seed=3).settings["steps"] == 2
    assert pipe.edit(pipe.generate(1).tensor, labels="c", steps=2, start_angle=40.0).tensor.shape == (1, 3, 32, 32)


def test_the_decoder_alone_makes_images_in_one_step(tmp_path: Path) -> None:
    model = model_of()
    folder = experiment(tmp_path / "e", model)
    command("--weights", folder, "--out", tmp_path / "out", "--decoder-only")
    alone: Any = sg.load(tmp_path / "out")
    assert all(name.startswith("decoder.") for name in alone.state_dict())
    assert [path.name for path in (tmp_path / "out").glob("LICENSE*")] == ["LICENSE-decoder.txt"]
    noise = torch.randn(2, *model.latent_shape)
    labels = torch.tensor([0, 1])
    one = [sg.sampling.sample(each, noise, labels, steps=1).images for each in (alone, model)]
    assert torch.equal(*one)
    with pytest.raises(ConfigError, match="without its encoder"):
        sg.sampling.sample(alone, noise, labels, steps=2)
    pipe = sg.Pipeline.from_pretrained(tmp_path / "out", device="cpu", quiet=True)
    assert pipe.generate(1).settings["steps"] == 1


@pytest.mark.parametrize(
    "options",
    [
        {"frozen": False, "pixel_head": "smooth", "angle_condition": "token", "num_classes": 0, "qk_norm": False},
        {"frozen": False, "pixel_head": "conv", "in_context_tokens": 3, "sphere": "token"},
        {"frozen": False, "angle_condition": "adaln", "in_context_tokens": 2, "num_classes": 0},
        {"frozen": False, "angle_condition": "none", "spherify_decoder_blocks": True, "in_context_tokens": 1},
        {"frozen": False, "angle_condition": "none", "num_classes": 0, "max_angle": 80.0, "sampling_angle": 60.0},
        {"latent_channels": 12, "pixel_head": "conv"},
    ],
    ids=str,
)
def test_every_architecture_converts(options: dict[str, Any], tmp_path: Path) -> None:
    model = model_of(**options)
    config = model.config
    told = {
        **training_options(model),
        "vit_enc_model_size": "mine",
        "spherify_mode": "local" if config.sphere == "token" else "global",
        "spherify_model": config.spherify_decoder_blocks,
        "use_angle_condition": config.angle_condition != "none",
        "noise_sigma_max_angle": config.max_angle,
        "sampling_angle": config.sampling_angle,
        "token_channels": config.channels,
    }
    save_file(published_state(model), tmp_path / "w.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(told))
    convert(tmp_path / "w.safetensors", tmp_path / "out")
    assert_same(sg.load(tmp_path / "out"), model)
    assert_same(load(tmp_path / "w.safetensors"), model)


def test_rounded_tables_change_decodes(tmp_path: Path) -> None:
    model = model_of(frozen=False)
    save_file(published_state(model), tmp_path / "w.safetensors")
    options = {**training_options(model), "vit_enc_model_size": "mine", "token_channels": 24}
    plain, rounded = (load(tmp_path / "w.safetensors", options, angle_rounding=each) for each in ("none", "bf16"))
    points = torch.randn(2, *model.latent_shape)
    with torch.no_grad():
        decodes = [each.decode(points, torch.tensor([0, 1]), angle=84) for each in (plain, rounded, model)]
    assert torch.equal(decodes[0], decodes[2]) and not torch.equal(decodes[0], decodes[1])


@pytest.mark.parametrize(
    "layout", ["experiments/sphere2-base-imagenet-fd-lite-64px", "sphere2-base-imagenet-64px-fdlite"]
)
def test_both_layouts_of_the_hub(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, repository = model_of(), tmp_path / "repository"
    experiment(repository / layout, model)
    experiment(repository / layout.replace("base", "large"), model_of(seed=1))
    FakeHub(monkeypatch, tmp_path / "cache", user__sphere2=repository)
    refuses(ModelFileError, lambda: convert("user/sphere2", tmp_path / "out"), "several models", "sphere2-base")
    refuses(ModelFileError, lambda: convert("user/sphere2:other", tmp_path / "out"), "has no other")
    command("--weights", "user/sphere2:sphere2-base-imagenet-fd-lite-64px", "--out", tmp_path / "out")
    assert_same(sg.load(tmp_path / "out"), model)


# files that are none --------------------------------------------------------------------------------------------------


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("executed",))


def test_broken_and_foreign_files_are_one_clear_line_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = experiment(tmp_path / "e", model_of())
    path = folder / "ckpt" / "ep1999.pth"
    whole = path.read_bytes()
    for length in (0, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        refuses(ModelFileError, lambda: convert(path, tmp_path / "out", config=folder / "cfg.json"), "ep1999.pth")
    torch.save({"model": {}, "args": Evil()}, path)
    refuses(ModelFileError, lambda: convert(folder, tmp_path / "out"), "ep1999.pth", "nothing of it was executed")
    assert "executed" not in capsys.readouterr().out
    torch.save(first_state(first_model()), path)
    refuses(ModelFileError, lambda: convert(folder, tmp_path / "out"), "the first Sphere Encoder")
    torch.save({"conv_in.weight": torch.zeros(4, 4)}, path)
    refuses(ModelFileError, lambda: convert(folder, tmp_path / "out"), "another model", "conv_in.weight")
    torch.save([1, 2], path)
    refuses(ModelFileError, lambda: convert(folder, tmp_path / "out"), "a list")
    state = published_state(model_of())
    lost = state.pop("decoder.blocks.1.attn.proj.bias")
    torch.save({**state, "decoder.more": lost}, path)
    refuses(
        ModelFileError, lambda: convert(folder, tmp_path / "out"), "decoder.blocks.1.attn.proj.bias", "decoder.more"
    )
    torch.save({**published_state(model_of()), "decoder.ffn.linear.bias": torch.full((192,), math.nan)}, path)
    refuses(ModelFileError, lambda: convert(folder, tmp_path / "out"), "not finite")
    assert not (tmp_path / "out").exists()


def test_options_that_do_not_fit_and_are_not_known(tmp_path: Path) -> None:
    model = model_of(frozen=False, qk_norm=False)
    save_file(published_state(model), tmp_path / "w.safetensors")
    told = {**training_options(model), "vit_enc_model_size": "mine", "token_channels": 24}
    for change, words in (
        ({"num_classes": 7}, "num_classes is 7 but the weights show 5"),
        ({"spherify_mode": "both"}, "spherify_mode"),
        ({"pretrained_encoder_interpolate_tokens": True}, "not supported"),
        ({"sizes": {}}, "vit_dec_heads"),
    ):
        refuses(ConfigError, lambda change=change: load(tmp_path / "w.safetensors", {**told, **change}), words)
    refuses(ConfigError, lambda: load(tmp_path / "w.safetensors", told, decoder_only=True), "one of its own")


@pytest.mark.parametrize("kind", ["dinov3_vit", "dinov2", "dinov2_with_registers", "siglip_vision_model"])
@torch.no_grad()
def test_frozen_encoders_of_every_kind_and_under_names_of_any_version(kind: str, tmp_path: Path) -> None:
    transformers = import_or_skip("transformers")
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1, "patch_size": 16, "image_size": 256}
    shape |= {"patch_size": 14, "image_size": 224} if "dinov2" in kind else {"intermediate_size": 96}
    torch.manual_seed(0)
    net = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(kind, **shape)).eval()
    shake(net, std=0.05)
    last = next(getattr(net, name) for name in ("norm", "layernorm", "post_layernorm") if hasattr(net, name))
    last.weight.fill_(1)
    last.bias.zero_()
    model = model_of()
    state = {name: each for name, each in published_state(model).items() if name.startswith("decoder.")}
    told = training_options(model)
    del told["load_pretrained_encoder"], told["pretrained_encoder_input_size"]
    state["decoder.pos_embed"], told["latent_resolution"], told["patch_size"] = torch.randn(1, 256, 32), 16, 2
    state["decoder.ffn.linear.weight"], state["decoder.ffn.linear.bias"] = torch.randn(12, 32), torch.randn(12)
    norm = next(name for name, module in net.named_modules() if module is last)
    own = {name: each.clone() for name, each in net.state_dict().items() if not name.startswith(f"{norm}.")}
    styles = {
        "now": own,
        "hub": {hub_name(kind, name): each for name, each in own.items()},
        "before": {f"vision_model.{hub_name(kind, name)}": each for name, each in own.items()},
    }
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    size, mode = (224, "bicubic") if "dinov2" in kind else (256, "bilinear")
    seen = torch.nn.functional.interpolate((images + 1) / 2, (size, size), mode=mode, antialias=True).clamp(0, 1)
    halves = kind.startswith("siglip")
    mean, std = ((0.5,) * 3, (0.5,) * 3) if halves else (IMAGENET_MEAN, IMAGENET_STD)
    pixels = (seen - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    expected = {style: net(pixel_values=pixels).last_hidden_state[:, -256:] for style in styles}
    shake(last)
    styles["trained"] = {**own, **{f"{norm}.{name}": each for name, each in last.state_dict().items()}}
    expected["trained"] = net(pixel_values=pixels).last_hidden_state[:, -256:]
    (tmp_path / "cfg.json").write_text(json.dumps(told))
    for style, frozen in styles.items():
        path = tmp_path / f"{style}.safetensors"
        save_file({**state, **{f"encoder.encoder.{name}": each for name, each in frozen.items()}}, path)
        command("--weights", path, "--config", tmp_path / "cfg.json", "--out", tmp_path / style)
        made: Any = sg.load(tmp_path / style)
        torch.testing.assert_close(made.encoder(images), expected[style], rtol=0, atol=TOLERANCE)


def test_licences_of_parts_are_in_card_and_folder(tmp_path: Path) -> None:
    folder = experiment(tmp_path / "e", model_of())
    command("--weights", folder, "--out", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "DINOv3 License" in card and "MIT (decoder)" in card and "LICENSE-DINOv3.txt" in card
    mit = (tmp_path / "out" / "LICENSE-decoder.txt").read_text()
    assert "Permission is hereby granted" in mit and "Kaiyu Yue" in mit
    notice = (tmp_path / "out" / "LICENSE-DINOv3.txt").read_text()
    assert "dinov3-license" in notice and "acknowledge" in notice
    (folder / "LICENSE_DINOv3.md").write_text("The whole text.")  # beside the weights
    command("--weights", folder, "--out", tmp_path / "with")
    assert "The whole text." in (tmp_path / "with" / "LICENSE-DINOv3.txt").read_text()
    convert(folder, tmp_path / "other", licence="CC0-1.0")
    assert not (tmp_path / "other" / "LICENSE-decoder.txt").exists()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_memory_stays_below_the_size_of_what_is_written(dtype: str, tmp_path: Path) -> None:
    from tests.processes import context

    size = TransformerSize(width=1024, depth=6, heads=16)
    model = model_of(decoder=size)
    folder = experiment(tmp_path / "e", model)
    options = {**training_options(model), "sizes": {"mine": {"width": 1024, "layers": 6, "heads": 16}}}
    (folder / "cfg.json").write_text(json.dumps(options))
    del model
    experiment(tmp_path / "small", model_of())
    queue = context.Queue()
    process = context.Process(target=_convert_and_measure, args=(str(folder), str(tmp_path / "out"), dtype, queue))
    process.start()
    grown = queue.get(timeout=200)
    process.join()
    assert grown < 0.7 * (tmp_path / "out" / "model.safetensors").stat().st_size


def _convert_and_measure(folder: str, out: str, dtype: str, queue: Any) -> None:
    import resource

    convert(Path(folder).parent / "small", f"{out}-small", dtype=dtype)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    convert(folder, out, dtype=dtype)
    queue.put(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
