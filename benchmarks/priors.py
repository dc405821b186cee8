"""Which density of a model's codes samples best: random points, Gaussians, mixtures, a latent denoiser.

    python benchmarks/priors.py FOLDER --data SRC [--count 2000] [--denoiser RUN] [--families NAME...] [--out FILE]

The weights of the model are never touched. All families draw for the same classes, evenly, from the same noise, and one
decode makes the image: of the draw, then of the draw turned by ANGLE degrees toward its noise and guided at pixels by
GUIDANCE. `--denoiser` is a latent denoiser that was trained on the codes of the same model:

    spheregen encode FOLDER SRC --out latents
    spheregen train sle-cifar10-laptop --data latents --set tokenizer=FOLDER --set model.tokens=1 ... --out RUN
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from figures import Figures, keep, sheet
from torch import Tensor

import spheregen as sg
from spheregen.data import to_uint8
from spheregen.data.images import to_model_range
from spheregen.evaluation.images import open_real, take
from spheregen.fitted import FittedPrior, fit_prior

PART = 64
Draw = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Noise (B, N, d), labels (B,) and uniform numbers (B,) -> raw latents."""


def codes_of(pipe: sg.Pipeline, data: str, most: int = 20_000) -> tuple[Tensor, Tensor]:
    """The codes of training images and their classes."""
    images = open_real(data, "train", pipe.image_options, class_names=pipe.info.class_names).thinned(most)
    pixels, labels = take(images, len(images)), torch.as_tensor(images.labels)
    parts = zip(pixels.split(PART), labels.split(PART), strict=True)
    with torch.no_grad():
        return torch.cat([pipe.model.encode(to_model_range(x), y) for x, y in parts]), labels


def gaussians(prior: FittedPrior, temperature: float = 1.0) -> Draw:
    rows = prior.embed_labels(None)
    return lambda noise, labels, uniform: prior.draw(noise, rows[labels], temperature)


def mixtures(codes: Tensor, labels: Tensor, classes: int, count: int) -> Draw:
    """A mixture in each class: k-means centres, and the covariance around them that all classes share."""
    x = codes.flatten(1)
    centres, shares = torch.zeros(classes, count, x.shape[1]), torch.zeros(classes, count)
    near = torch.zeros_like(x)
    for one in range(classes):
        own = x[labels == one]
        chosen = torch.randperm(len(own), generator=torch.Generator().manual_seed(one))[:count]
        middle = own[chosen]
        for _ in range(20):
            at = torch.cdist(own, middle).argmin(1)
            middle = torch.stack([own[at == i].mean(0) if (at == i).any() else middle[i] for i in range(len(middle))])
        at = torch.cdist(own, middle).argmin(1)
        centres[one, : len(middle)] = middle
        shares[one, : len(middle)] = torch.bincount(at, minlength=len(middle)) / len(own)
        near[labels == one] = own - middle[at]
    around = fit_prior(near.view_as(codes), None, 0)

    def draw(noise: Tensor, labels: Tensor, uniform: Tensor) -> Tensor:
        which = (shares[labels].cumsum(1) < uniform[:, None]).sum(1).clamp_max(count - 1)
        return around.draw(noise, around.embed_labels(None)[-1:]) + centres[labels, which].view_as(noise)

    return draw


def neighbours(codes: Tensor, labels: Tensor, classes: int, near: int = 5) -> Draw:
    """A point between a code and one of its nearest of the class: a density of kernels, closest to the codes."""
    x = codes.flatten(1)
    groups = [x[labels == one] for one in range(classes)]
    closest = [torch.cdist(own, own).topk(min(near + 1, len(own)), largest=False).indices[:, 1:] for own in groups]

    def draw(noise: Tensor, labels: Tensor, uniform: Tensor) -> Tensor:
        rows = []
        for e, label, u in zip(noise, labels.tolist(), uniform.tolist(), strict=True):
            own, others = groups[label], closest[label]
            i = int(u * len(own))
            j = int(others[i, int(abs(float(e.flatten()[0])) * 1e4) % others.shape[1]])
            t = float(torch.special.ndtr(e.flatten()[1]))
            rows.append((1 - t) * own[i] + t * own[j])
        return torch.stack(rows).view_as(noise)

    return draw


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--denoiser", type=Path)
    parser.add_argument("--families", nargs="+", help="those alone whose names hold one of these")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--turned", type=float, nargs=2, default=(55.0, 3.0), metavar=("ANGLE", "GUIDANCE"))
    parser.add_argument("--out", type=Path, default=Path("priors.jsonl"))
    parser.add_argument("--sheets", type=Path)
    given = parser.parse_args()
    pipe = sg.Pipeline.from_pretrained(given.folder, device="cpu", quiet=True)
    classes, model = pipe.classes.count, pipe.model
    figures = Figures(pipe, given.data, given.out.parent / "classifiers")
    keep(given.out, {"model": given.folder.name, "family": "held-out images", **figures.held_out()})
    codes, labels = codes_of(pipe, given.data)
    families: dict[str, Draw] = {
        "random points": lambda noise, labels, uniform: noise,
        "Gaussians, one covariance": gaussians(fit_prior(codes, labels, classes, shrinkage=1e9)),
        "Gaussians, shrinkage 500": gaussians(fit_prior(codes, labels, classes, shrinkage=500)),
        "Gaussians, shrinkage 50": gaussians(fit_prior(codes, labels, classes, shrinkage=50)),
        "Gaussians, shrinkage 10": gaussians(fit_prior(codes, labels, classes, shrinkage=10)),
        "the same, temperature 0.8": gaussians(fit_prior(codes, labels, classes, shrinkage=10), 0.8),
        "the same, temperature 1.2": gaussians(fit_prior(codes, labels, classes, shrinkage=10), 1.2),
        "the same, 16 directions": gaussians(fit_prior(codes, labels, classes, shrinkage=10, directions=16)),
        "the same, 200 directions": gaussians(fit_prior(codes, labels, classes, shrinkage=10, directions=200)),
        "Gaussians, no shrinkage": gaussians(fit_prior(codes, labels, classes, shrinkage=0)),
        "mixtures of 4": mixtures(codes, labels, classes, 4),
        "mixtures of 16": mixtures(codes, labels, classes, 16),
        "between neighbours": neighbours(codes, labels, classes),
    }
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(given.count, *model.latent_shape, generator=generator)
    uniform = torch.rand(given.count, generator=generator)
    asked = torch.arange(given.count) % classes

    def score(name: str, images: Tensor, seconds: float) -> None:
        pixels = to_uint8(images)
        row = {"model": given.folder.name, "family": name, **figures.of(pixels, asked)}
        keep(given.out, {**row, "ms": 1000 * seconds / len(pixels)})
        if given.sheets:
            given.sheets.mkdir(parents=True, exist_ok=True)
            sheet(images, asked.tolist(), given.sheets / f"{given.folder.name}-{name.replace(' ', '-')}.png")

    angle, guidance = given.turned
    null = torch.full((PART,), classes)
    if given.families:
        families = {name: draw for name, draw in families.items() if any(part in name for part in given.families)}
    for (name, draw), turned in itertools.product(families.items(), (False, True)):
        begun, made = time.process_time(), []
        for e, y, u in zip(noise.split(PART), asked.split(PART), uniform.split(PART), strict=True):
            point = model.prior.project(draw(e, y, u))
            if turned:
                point = model.prior.perturb(point, e, math.radians(angle))
            images = model.to_image(model.decode(point, y))
            if turned:
                plain = model.to_image(model.decode(point, null[: len(y)]))
                images = plain + guidance * (images - plain)
            made.append(images.clamp(-1, 1) / 2 + 0.5)
        score(f"{name}{', turned' * turned}", torch.cat(made), time.process_time() - begun)
    if given.denoiser:
        other = sg.Pipeline.from_pretrained(given.denoiser, device="cpu", quiet=True)
        for steps in (1, 4):
            begun = time.process_time()
            made_by = other.generate(labels=asked.tolist(), seed=0, steps=steps).tensor
            score(f"latent denoiser, {steps} steps", made_by, time.process_time() - begun)


if __name__ == "__main__":
    main()
