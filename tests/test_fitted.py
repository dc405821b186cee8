"""The fitted prior: what it is fitted to is what it draws, whoever fitted it and however it is turned."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import torch
from torch import Tensor

import spheregen as sg
from spheregen.errors import ConfigError, DataError, ModelFileError
from spheregen.evaluation.tuning import SEED, tune_sampling
from spheregen.family.sphere_encoder_2.config import SphereEncoder2Config
from spheregen.family.sphere_encoder_2.network import SphereEncoder2
from spheregen.fitted import FittedPrior, fit_prior
from spheregen.folders.model_folder import save_sampling
from spheregen.pipeline.output import read_record
from tests.factories import KINDS, SIZE, images_of, shaken, tiny_pipeline

NUMBERS, CLASSES = 24, 3


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def codes_of(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Codes of three classes with means and covariances of their own, in six of the 24 directions, and a little noise
    in all."""
    labels = torch.arange(count) % CLASSES
    means, maps = 3 * gaussian(CLASSES, NUMBERS, seed=9), gaussian(CLASSES, 6, NUMBERS, seed=8)
    inside = torch.einsum("bi,bij->bj", gaussian(count, 6, seed=seed), maps[labels])
    return means[labels] + inside + 0.1 * gaussian(count, NUMBERS, seed=seed + 1), labels


@pytest.fixture(scope="module")
def prior() -> FittedPrior:
    return fit_prior(*codes_of(3000), CLASSES, shrinkage=0)


def weights(label: int, count: int) -> Tensor:
    return torch.eye(CLASSES + 1)[label].expand(count, -1)


def test_draws_of_a_class_are_as_its_codes(prior: FittedPrior) -> None:
    codes, labels = codes_of(6000, seed=5)
    noise = gaussian(4000, NUMBERS, seed=3)
    for label in range(CLASSES + 1):
        real = codes if label == CLASSES else codes[labels == label]
        drawn = prior.draw(noise, weights(label, len(noise)))
        spread = real.std()
        assert (drawn.mean(0) - real.mean(0)).abs().max() < 0.15 * spread
        difference = torch.cov(drawn.T) - torch.cov(real.T)
        assert difference.norm() < 0.2 * torch.cov(real.T).norm()


def test_temperature_and_mixtures(prior: FittedPrior) -> None:
    noise = gaussian(5, 4, 6)
    cold = prior.draw(noise, weights(1, 5), temperature=0)
    assert cold.shape == noise.shape
    torch.testing.assert_close(cold, cold[:1].expand_as(cold))
    warm, half = prior.draw(noise, weights(1, 5)), prior.draw(noise, weights(1, 5), temperature=0.5)
    torch.testing.assert_close(half, (cold + warm) / 2, atol=1e-4, rtol=1e-4)
    both = (weights(0, 5) + weights(1, 5)) / 2
    between = (prior.draw(noise, weights(0, 5)) + warm) / 2
    torch.testing.assert_close(prior.draw(noise, both), between, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(prior.draw(noise[2:3], both[:1]), between[2:3], atol=1e-4, rtol=1e-4)


def test_the_noise_of_a_draw_is_found_again() -> None:
    codes, labels = codes_of(3000)
    prior = fit_prior(codes, labels, CLASSES)
    noise = gaussian(5, 4, 6)
    drawn = prior.draw(noise, weights(1, 5))
    again = prior.noise_of(drawn, weights(1, 5))
    torch.testing.assert_close(prior.draw(again, weights(1, 5)), drawn, atol=2e-2, rtol=1e-3)
    one_of_each = torch.eye(CLASSES + 1)[[0, 1, 2, 1, 0]]
    mixed = prior.draw(noise, one_of_each)
    torch.testing.assert_close(prior.draw(prior.noise_of(mixed, one_of_each), one_of_each), mixed, atol=2e-2, rtol=1e-3)


def test_one_noise_makes_draws_of_all_classes_that_go_together() -> None:
    labels = torch.arange(4000) % 2
    shared = torch.linspace(3, 1, NUMBERS).diag()
    turned = [torch.linalg.matrix_exp(0.1 * (a - a.T)) for a in gaussian(2, NUMBERS, NUMBERS, seed=3)]
    own = torch.stack([turn @ shared @ turn.T @ (shared + turn).T for turn in turned])
    codes = torch.einsum("bi,bij->bj", gaussian(4000, NUMBERS, seed=4), own[labels])
    prior = fit_prior(codes, labels, 2, shrinkage=0)
    noise = gaussian(500, NUMBERS, seed=5)
    both = [prior.draw(noise, torch.eye(3)[label][None]) for label in (0, 1)]
    covariances = [(own[label].T @ own[label]).double() for label in (0, 1)]
    roots = [(vectors * values.sqrt()) @ vectors.T for values, vectors in map(torch.linalg.eigh, covariances)]
    apart = (both[0] - both[1]).square().sum(1).mean()
    plain = (noise.double() @ (roots[0] - roots[1])).square().sum(1).mean()
    assert apart < 0.95 * plain, "nearer than draws by the symmetric roots"


def test_turning_all_codes_turns_all_draws() -> None:
    codes, labels = codes_of(900)
    turn = torch.linalg.qr(gaussian(NUMBERS, NUMBERS, seed=7)).Q
    noise = gaussian(6, NUMBERS, seed=2)
    before = fit_prior(codes, labels, CLASSES, directions=9).draw(noise, weights(0, 6))
    after = fit_prior(codes @ turn, labels, CLASSES, directions=9).draw(noise @ turn, weights(0, 6))
    torch.testing.assert_close(after, before @ turn, atol=2e-3, rtol=2e-3)


def together(parts: list[tuple[Tensor, Tensor]]) -> FittedPrior:
    """The prior that processes with these codes find, each a generator that stops where it gathers."""
    barrier, slots = Barrier(len(parts)), [None] * len(parts)

    def gather(rank: int, value: Any) -> list[Any]:
        slots[rank] = value
        barrier.wait()
        found = list(slots)
        barrier.wait()
        return found

    def fit(rank: int) -> FittedPrior:
        return fit_prior(*parts[rank], CLASSES, gather=partial(gather, rank))

    with ThreadPoolExecutor(len(parts)) as threads:
        found = list(threads.map(fit, range(len(parts))))
    for field in dataclasses.fields(FittedPrior):
        assert all(torch.equal(getattr(each, field.name), getattr(found[0], field.name)) for each in found)
    return found[0]


def test_processes_find_the_prior_of_one() -> None:
    codes, labels = codes_of(1501)
    one = fit_prior(codes, labels, CLASSES)
    two = together([(codes[:400], labels[:400]), (codes[400:], labels[400:])])
    noise = gaussian(8, NUMBERS)
    for label in range(CLASSES + 1):
        drawn = one.draw(noise, weights(label, 8))
        torch.testing.assert_close(two.draw(noise, weights(label, 8)), drawn, atol=1e-5, rtol=1e-5)


def test_a_class_of_few_codes_leans_on_all() -> None:
    codes, labels = codes_of(3000)
    few = torch.cat([(labels == 0).nonzero()[:4, 0], (labels != 0).nonzero()[:, 0]])
    prior = fit_prior(codes[few], labels[few], CLASSES + 1)  # and one class has none at all
    noise = gaussian(500, NUMBERS, seed=3)
    drawn = [prior.draw(noise, torch.eye(CLASSES + 2)[label].expand(500, -1)) for label in (0, 1, CLASSES)]
    spread = [part.std(0).norm() for part in drawn]
    assert spread[0] > 0.5 * spread[1] and spread[2] > 0.5 * spread[1]
    assert all(bool(part.isfinite().all()) for part in drawn)


def test_many_classes_share_one_factor(monkeypatch: pytest.MonkeyPatch) -> None:
    codes, labels = codes_of(3000)
    monkeypatch.setattr("spheregen.fitted.OWN_FACTORS", 10)
    prior = fit_prior(codes, labels, CLASSES)
    assert len(prior.factors) == 2
    prior.check(NUMBERS, CLASSES)
    noise = gaussian(2000, NUMBERS)
    a, b = (prior.draw(noise, weights(label, 2000)) for label in (0, 1))
    torch.testing.assert_close(a - a.mean(0), b - b.mean(0), atol=1e-4, rtol=1e-4)
    assert (a.mean(0) - codes[labels == 0].mean(0)).norm() < 0.1 * codes.norm(dim=1).mean()


@pytest.mark.parametrize("count", [2, 5])
def test_fewer_codes_than_directions(count: int) -> None:
    codes, _ = codes_of(count)
    prior = fit_prior(codes, None, 0)
    prior.check(NUMBERS, 0)
    assert prior.draw(gaussian(3, NUMBERS), torch.ones(1, 1)).isfinite().all()


def test_one_code_is_no_prior() -> None:
    with pytest.raises(DataError, match="2"):
        fit_prior(codes_of(1)[0], None, 0)


@pytest.mark.parametrize(
    "change",
    [
        lambda prior: dataclasses.replace(prior, centre=prior.centre[:-1]),
        lambda prior: dataclasses.replace(prior, factors=prior.factors[:1]),
        lambda prior: dataclasses.replace(prior, means=prior.means * float("nan")),
    ],
)
def test_a_prior_of_something_else_is_refused(prior: FittedPrior, change: Callable[[FittedPrior], FittedPrior]) -> None:
    prior.check(NUMBERS, CLASSES)
    with pytest.raises(ConfigError):
        change(prior).check(NUMBERS, CLASSES)


# in a pipeline and on disk --------------------------------------------------------------------------------------------


def fitted_pipeline(kind: str = "images") -> sg.Pipeline:
    pipe = tiny_pipeline(kind=kind)
    shape, classes = pipe.model.latent_shape, pipe.model.num_classes
    codes = pipe.model.prior.project(gaussian(60, *shape, seed=4) + 2 * gaussian(1, *shape, seed=5))
    pipe.model.fitted = fit_prior(codes, torch.arange(60) % classes, classes)
    return pipe


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_of_a_fitted_point_depends_on_its_seed_alone(kind: str) -> None:
    pipe = fitted_pipeline(kind)
    for steps in (1, 3):
        how: dict[str, Any] = {"labels": [0, 1, 2, 1, 0], "seed": 7, "steps": steps, "prior": "fitted"}
        made = pipe.generate(**how)
        torch.testing.assert_close(pipe.generate(**how, batch_size=2).tensor, made.tensor, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(made.tensor, pipe.generate(**{**how, "prior": "sphere"}).tensor, atol=1e-3)
        assert not torch.allclose(made.tensor, pipe.generate(**how, temperature=0.3).tensor, atol=1e-3)
        assert not torch.allclose(made.tensor, pipe.generate(**how, prior_angle=40).tensor, atol=1e-3)


def test_an_angle_of_90_degrees_makes_fitted_points_uniform() -> None:
    pipe = fitted_pipeline()
    torch.testing.assert_close(
        pipe.generate(4, prior="fitted", prior_angle=90).tensor, pipe.generate(4).tensor, atol=1e-5, rtol=1e-5
    )


def test_edits_leave_out_the_guidance_of_points_beside_the_codes() -> None:
    pipe, images = fitted_pipeline(), images_of(2)
    sampling = {"prior": "fitted", "prior_angle": 50.0, "guidance": 3.0, "steps": 1}
    pipe.info = dataclasses.replace(pipe.info, sampling=sampling)
    for edited in (pipe.edit(images, 1), pipe.vary(images[:1], 2, labels=1)):
        assert edited.settings["guidance"] == 1
    assert pipe.edit(images, 1, guidance=2.0).settings["guidance"] == 2
    ends = pipe.interpolate([1, 2], 3, labels=[0, 1]).tensor[[0, -1]]
    torch.testing.assert_close(ends, pipe.generate(labels=[0, 1], seeds=[1, 2], steps=1).tensor, atol=1e-5, rtol=1e-5)


class FirstIsBest:
    """A scorer that likes the model's own defaults best."""

    real_accuracy = None

    def __init__(self) -> None:
        self.calls = 0

    def figures(self, images: Tensor, labels: Tensor | None) -> dict[str, float]:
        self.calls += 1
        return dict.fromkeys(("fd_own", "fd_classifier"), 1.0 if self.calls == 1 else 2.0)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_tuning_around_points_far_from_the_codes_stays_on_the_sphere(guidance: float) -> None:
    pipe = fitted_pipeline()
    own = {"prior": "fitted", "prior_angle": 85.0, "guidance": guidance, "steps": 1}
    pipe.info = dataclasses.replace(pipe.info, sampling=own)
    best, tried = tune_sampling(pipe, FirstIsBest(), seconds=1e9, count=3)  # type: ignore[arg-type]
    assert best.settings["prior_angle"] == 85 and {75, 90} <= {trial.settings["prior_angle"] for trial in tried}
    assert all(trial.settings["guidance"] >= 1 for trial in tried)


class LikesAngle:
    """A scorer that likes images of one setting best: those that a pipeline makes by it."""

    real_accuracy = None

    def __init__(self, pipe: sg.Pipeline, **settings: Any) -> None:
        self.liked = pipe.generate(3, seed=SEED, **settings).tensor

    def figures(self, images: Tensor, labels: Tensor | None) -> dict[str, float]:
        return dict.fromkeys(("fd_own", "fd_classifier"), 1 + (images - self.liked).abs().mean().item())


def test_tuning_finds_the_angle_that_a_model_is_told_and_its_folder_keeps_it(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"image_size": 8, "patch_size": 4, "encoder": SIZE, "decoder": SIZE, "latent_channels": 4}
    model = shaken(SphereEncoder2(SphereEncoder2Config(**sizes)))
    sg.Pipeline(model).save_pretrained(tmp_path / "model")
    pipe = sg.Pipeline.from_pretrained(tmp_path / "model", device="cpu", quiet=True)
    liked = {"steps": 1, "prior": "sphere", "start_angle": 73.0}
    best, _ = tune_sampling(pipe, LikesAngle(pipe, **liked), seconds=1e9, count=3)  # type: ignore[arg-type]
    assert {name: best.settings[name] for name in liked} == liked
    save_sampling(tmp_path / "model", best.settings)
    again = sg.Pipeline.from_pretrained(tmp_path / "model", device="cpu", quiet=True)
    assert again.model.start_angle == 73 and "start_angle" not in again.settings()
    assert "sampled at 73" in (tmp_path / "model" / "README.md").read_text()
    assert torch.equal(again.generate(3, seed=SEED).tensor, pipe.generate(3, seed=SEED, **liked).tensor)
    fixed = sg.Pipeline(SphereEncoder2(SphereEncoder2Config(**sizes, angle_condition="none")))
    for one, angles in ((again, {None, 76.0}), (fixed, {None})):  # its own is tried once, and none where none is told
        _, tried = tune_sampling(one, FirstIsBest(), seconds=1e9, count=3)  # type: ignore[arg-type]
        assert {trial.settings.get("start_angle") for trial in tried} == angles


def test_interpolation_starts_from_fitted_points_and_edits_from_images() -> None:
    pipe = fitted_pipeline()
    how: dict[str, Any] = {"prior": "fitted", "temperature": 0.5}
    ends = pipe.interpolate([3, 4], 3, steps=1, **how)
    made = pipe.generate(seeds=[3, 4], steps=1, **how)
    torch.testing.assert_close(ends.tensor[[0, -1]], made.tensor, atol=1e-4, rtol=1e-4)
    with pytest.raises(ConfigError, match="prior"):
        pipe.edit(images_of(1), prior="fitted")
    assert pipe.edit(images_of(1)).settings["prior"] == "sphere"


def test_a_folder_keeps_its_prior_and_refuses_that_of_other_weights(tmp_path: Path) -> None:
    pipe = fitted_pipeline()
    pipe.save_pretrained(tmp_path / "model")
    again = sg.Pipeline.from_pretrained(tmp_path / "model", device="cpu", quiet=True)
    how: dict[str, Any] = {"labels": 1, "prior": "fitted"}
    torch.testing.assert_close(again.generate(2, **how).tensor, pipe.generate(2, **how).tensor, atol=1e-6, rtol=1e-6)
    again.generate(1, seed=5, **how).save(tmp_path / "made.png")
    record = read_record(tmp_path / "made.png")
    assert (record.settings["prior"], record.settings["temperature"], record.settings["prior_angle"]) == (
        "fitted",
        1,
        0,
    )
    plain = tiny_pipeline()
    plain.model.load_state_dict(shaken(plain.model).state_dict())
    kept = (tmp_path / "model" / "prior.safetensors").read_bytes()
    plain.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model" / "prior.safetensors").exists()
    (tmp_path / "model" / "prior.safetensors").write_bytes(kept)
    with pytest.raises(ModelFileError, match="other weights"):
        sg.load(str(tmp_path / "model"))
    (tmp_path / "model" / "prior.safetensors").write_bytes(kept[:-20])
    with pytest.raises(ModelFileError, match=r"prior\.safetensors"):
        sg.load(str(tmp_path / "model"))


@pytest.mark.parametrize(
    "options",
    [{"prior": "fited"}, {"prior": "fitted", "temperature": -1}, {"prior": "fitted", "prior_angle": 91},
     {"temperature": 0.5}, {"prior_angle": 10, "prior": "sphere"}],
)  # fmt: skip
def test_impossible_starts_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        fitted_pipeline().generate(1, **options)


def test_a_model_whose_prior_is_not_there_yet_draws_uniform_points() -> None:
    pipe = fitted_pipeline()
    pipe.info = dataclasses.replace(pipe.info, sampling={**pipe.info.sampling, "prior": "fitted", "temperature": 0.5})
    assert pipe.generate(1).settings["prior"] == "fitted"
    assert pipe.generate(1, prior="sphere").settings["temperature"] == 1
    pipe.model.fitted = None
    assert pipe.generate(1).settings["prior"] == "sphere"


def test_a_model_without_one_says_how_to_get_it() -> None:
    with pytest.raises(ConfigError, match="fit-prior"):
        tiny_pipeline().generate(1, prior="fitted")


def test_edits_move_codes_into_the_density_of_a_class() -> None:
    pipe = tiny_pipeline()
    images = images_of(40)
    labels = torch.arange(40) % CLASSES
    prior = fit_prior(pipe.encode(images, labels.tolist()), labels, CLASSES)
    pipe.model.fitted = prior
    each, asked = prior.embed_labels(None), [2, 0, 1]
    made = pipe.edit(images[:3], asked, prior="fitted", guidance=1.0)
    noise = prior.noise_of(pipe.encode(images[:3]), each[-1:])
    points = pipe.model.prior.project(prior.draw(noise, each[asked]))
    torch.testing.assert_close(made.tensor, pipe.decode(points, asked), atol=1e-5, rtol=0)
    assert made.settings["steps"] == 1 and made.settings["prior"] == "fitted"
    alone = pipe.edit(images[1:2], asked[1], prior="fitted", guidance=1.0, seed=1)
    torch.testing.assert_close(alone.tensor[0], made.tensor[1], atol=1e-3, rtol=0)
    cold = pipe.edit(images[:3], 1, prior="fitted", temperature=0.0, guidance=1.0).tensor
    torch.testing.assert_close(cold, cold[:1].expand_as(cold), atol=1e-5, rtol=0)
    assert len(pipe.edit(images[:1], 1, prior="fitted", steps=3).trajectory) == 3
    loop = pipe.edit(images[:3], asked)  # the model's default has no fitted prior
    assert torch.equal(loop.tensor, pipe.edit(images[:3], asked, prior="sphere").tensor)
    assert not torch.equal(loop.tensor, made.tensor)
    with pytest.raises(ConfigError, match="prior_angle"):
        pipe.edit(images[:1], 1, prior="fitted", prior_angle=10)
    how: dict[str, Any] = {"prior": "fitted", "guidance": 1.0}
    near, far = (pipe.vary(images[:1], 6, angle=angle, labels=2, **how).tensor for angle in (0.0, 90.0))
    code = pipe.encode(images[:1], 2)
    again = prior.draw(prior.noise_of(code, each[2:3]), each[2:3])
    torch.testing.assert_close(near, pipe.decode(again, 2).expand_as(near), atol=1e-3, rtol=0)
    drawn = pipe.generate(6, labels=2, prior="fitted", guidance=1.0, steps=1).tensor
    torch.testing.assert_close(far, drawn, atol=1e-3, rtol=0)
    exact = pipe.vary(images[:1], 2, labels=2)
    assert exact.settings["prior"] == "sphere" and not torch.equal(
        exact.tensor, pipe.vary(images[:1], 2, angle=20).tensor
    )
    with pytest.raises(ConfigError, match="temperature"):
        pipe.edit(images[:1], 1, temperature=0.5)
