"""Preview pictures of a run: what the model makes of some images at growing angles, and samples of fixed seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from spheregen.data import image_grid, save_png
from spheregen.losses.reconstruction import to_unit
from spheregen.models.flow_refiner import RefinedGenerator
from spheregen.models.protocol import SphereGenerator
from spheregen.sampling import reconstruct, sample, seeded_noise
from spheregen.sampling.refinement import Refinement, Rough, refine_samples, refinement_noise
from spheregen.sampling.schedules import Schedule, refinement_radii
from spheregen.sphere import rotate, sigma_to_angle

COLUMNS = 10
SAMPLE_ROWS = 2
TILT_SEED = 1 << 40  # far from the seeds of the samples


@torch.no_grad()
def save_preview(
    model: SphereGenerator,
    originals: Tensor,
    path: Path | None,
    metadata: dict[str, str],
    *,
    labels: Tensor | None = None,
    angles: Sequence[float] = (0, 25, 50, 75),
    steps: Sequence[int] = (1, 4),
    schedule: Schedule = "fixed",
    guidance: float = 1.0,
    guidance_at: str = "both",
    share_noise: bool = True,
    refinement: Refinement | None = None,
) -> None:
    """Write a sheet of up to ten columns, whose rows are, from the top:

    - originals;
    - their reconstructions, under the null class, without noise;
    - for each angle, decodes of the originals' latents rotated by exactly that angle towards fixed random points, under
      `labels`. With angle 0 this is the reconstruction again where there are no labels, and left out;
    - for each step count, two rows of samples of fixed seeds, the classes in turn. Those of a refined generator are of
      one step, rough and refined.

    Noise and seeds are the same every time, so that the pictures of a run can be compared.

    Args:
        model: in evaluation mode.
        originals: (B, C, S, S) in [-1, 1], B >= 1; the first ten are shown.
        path: a `.png` file; None computes the rows and writes nothing, for the other processes of a sharded model.
        metadata: text for the PNG; `rows` is added and says what each row is.
        labels: (B,) int64 classes of the originals; None is the null class, and right for an unconditional model.
        angles: degrees in [0, 180]; those beyond the model's training noise are lowered to its largest angle.
        steps: step counts of the samples, each at least 1.
        schedule, guidance, guidance_at, share_noise: as in `spheregen.sampling.sample`. An unconditional model is
            sampled without guidance.
        refinement: of a refined generator, how its images are refined.

    Raises:
        ConfigError: settings that do not fit together.
        SphereGenError: the file cannot be written.
    """
    for number in steps:
        refinement_radii(schedule, number)  # what does not fit shows here, before any work
    originals = originals[:COLUMNS]
    columns, device = originals.shape[0], originals.device
    labels = None if labels is None or not model.num_classes else labels[:COLUMNS].to(device)
    null = ", null class" if model.num_classes else ""
    rows = {"originals": originals, f"reconstructions{null}": reconstruct(model, originals)}

    v = model.encode(originals, labels)
    towards = seeded_noise(range(TILT_SEED, TILT_SEED + columns), model.latent_shape, 0).initial.to(device)
    under = null if labels is None else ", their classes"
    for angle in shown_angles(angles, model.sigma_max):
        if angle or labels is not None:
            rows[f"latents rotated by {angle:g} degrees{under}"] = model.decode(rotate(v, towards, angle), labels)

    count = SAMPLE_ROWS * columns
    classes = torch.arange(count, device=device) % model.num_classes if model.num_classes else None
    scale = guidance if model.num_classes else 1.0
    if refinement is not None:
        steps = (1,)
    for number in dict.fromkeys(steps):
        noise = seeded_noise(range(count), model.latent_shape, number - 1, share=share_noise)
        step_noise = (
            noise.steps.to(device) if isinstance(noise.steps, Tensor) else [one.to(device) for one in noise.steps]
        )
        rough = Rough(model) if isinstance(model, RefinedGenerator) else None
        samples = sample(
            rough or model,
            noise.initial.to(device),
            classes,
            steps=number,
            schedule=schedule,
            guidance=scale,
            guidance_at=guidance_at,
            step_noise=step_noise,
        )
        guided = f", guidance {scale:g}" if scale != 1 else ""
        rows[f"samples in {number} step{'s' if number > 1 else ''}, seeds 0 to {count - 1}{guided}"] = samples.images
        if rough is not None and refinement is not None:
            start = refinement_noise(range(count), model.image_shape).to(device)
            refined = refine_samples(rough, samples, classes, refinement, start).images
            rows[f"the same refined in {refinement.steps} steps ({refinement.solver})"] = refined
    if path is not None:
        save_sheet(rows, columns, path, metadata)


def save_sheet(rows: Mapping[str, Tensor], columns: int, path: Path, metadata: Mapping[str, str]) -> None:
    """Write a sheet of images (B, C, S, S) in [-1, 1], B a multiple of `columns`, under words for them.

    Args:
        metadata: text for the PNG; `rows` is added and says what each row is.

    Raises:
        SphereGenError: the file cannot be written.
    """
    described = []
    line = 1
    for text, images in rows.items():
        height = images.shape[0] // columns
        described.append(f"{line}: {text}" if height == 1 else f"{line}-{line + height - 1}: {text}")
        line += height
    sheet = to_unit(torch.cat([images.float() for images in rows.values()])).clamp(0, 1).cpu()
    grid = image_grid(sheet, columns=columns, scale=max(1, 48 // sheet.shape[-1]))
    save_png(grid, path, {**metadata, "rows": "; ".join(described)})


def shown_angles(angles: Sequence[float], sigma_max: float) -> tuple[float, ...]:
    """The angles in degrees that a model of noise up to `sigma_max` is shown at: its own largest at most, each once."""
    largest = sigma_to_angle(sigma_max)
    return tuple(dict.fromkeys(round(min(float(angle), largest), 3) for angle in angles))
