"""Preview images of a run: a batch reconstructed and noised at growing angles, and samples of fixed seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spheregen.data import labelled_sheet, save_png
from spheregen.family.recipe import SamplingConfig
from spheregen.family.terms import to_unit
from spheregen.sampling import reconstruct, sample, seeded_noise
from spheregen.sampling.flow import Refinement, refine_samples, refinement_noise
from spheregen.sphere import rotate
from spheregen.training.hooks import RunView, Values

FOLDER = "previews"
"""The folder of previews in a run folder."""
COLUMNS = 10
SAMPLE_ROWS = 2
ANGLES = (0, 25, 50, 75)
"""Degrees by which latents are rotated."""
LATENT_NOISE = (0.5, 1.0)
"""Noise on the latents of a tokenizer, in their deviations."""
LONGEST_NAME = 16
"""Characters of a caption below an image."""
ROTATION_SEED = 1 << 40  # far from the seeds of the samples


class PreviewHook:
    """Writes `previews/step-NNNNNNNNN.png` into the run folder: rows of images with captions.

    Args:
        every: steps between two previews; 0 for none.
        computes: whether this process takes part: the first does, and all do if the model is sharded.
        class_names: of the data, for the captions.
    """

    def __init__(self, every: int, *, computes: bool = True, class_names: Sequence[str] = ()) -> None:
        self.every, self.computes, self.class_names = every, computes, class_names

    def after_step(self, run: RunView, step: int) -> Values | None:
        """Draw and write the sheet; the trackers get its file."""
        if not self.computes:
            return None
        batch, sampling = run.first_batch(), run.recipe.sampling
        inputs, labels = batch.inputs[:COLUMNS], None if batch.labels is None else batch.labels[:COLUMNS]
        texts = None if batch.texts is None else batch.texts[: len(inputs)]
        rows = preview_rows(run.model, inputs, labels, sampling)
        if not run.is_first:
            return None
        described, captions, sheet, notes, columns = (
            [],
            list[str](),
            list[list[Tensor]](),
            list[list[str]](),
            len(inputs),
        )
        for text, images in rows.items():
            cells = to_unit(images.float()).clamp(0, 1).cpu().split(1)
            height, line = len(cells) // columns, len(sheet) + 1
            described.append(f"{line}: {text}" if height == 1 else f"{line}-{line + height - 1}: {text}")
            captions += [text, *[""] * (height - 1)]
            names = self._names(text, labels, len(cells), texts)
            for start in range(0, len(cells), columns):
                sheet.append(list(cells[start : start + columns]))
                notes.append(names[start : start + columns])
        drawn = labelled_sheet(
            sheet,
            captions,
            [""] * columns,
            notes=notes,
            title=f"{run.recipe.name}, step {step}",
            scale=max(1, 48 // sheet[0][0].shape[-1]),
        )
        path = run.folder / FOLDER / f"step-{step:09d}.png"
        save_png(drawn, path, {"step": str(step), "recipe": run.recipe.name, "rows": "; ".join(described)})
        return {"preview": path}

    def _names(self, text: str, labels: Tensor | None, count: int, texts: Sequence[str] | None) -> list[str]:
        """The classes, or beginnings of captions, below the images of rows: of originals their own, of samples all in
        turn."""
        if texts is not None:
            shown = text == "originals" or text.startswith("samples")
            return [texts[i % len(texts)][:LONGEST_NAME] if shown else "" for i in range(count)]
        if text.startswith("samples") and self.class_names:
            return [self.class_names[i % len(self.class_names)] for i in range(count)]
        if text == "originals" and self.class_names and labels is not None:
            return [self.class_names[int(label)] for label in labels]
        return [""] * count


@torch.no_grad()
def preview_rows(model: Any, inputs: Tensor, labels: Tensor | None, sampling: SamplingConfig) -> dict[str, Tensor]:
    """Return the images of a preview, (B or a multiple of it, C, S, S) in [-1, 1], by words for them.

    - originals, and their reconstructions under the null class, without noise;
    - for each angle, decodes of the originals' latents rotated by exactly that angle towards fixed random points, under
      `labels`. With angle 0 this is the reconstruction again where there are no labels, and left out;
    - two rows of samples of fixed seeds in one step, and in the steps of `sampling`, the classes in turn; of a refined
      generator rough and refined.

    A tokenizer shows originals and reconstructions, without and with noise on its latents. Noise and seeds are the same
    every time, so that the previews of a run can be compared.

    Args:
        model: a generator of the sphere or a tokenizer, in evaluation mode.
        inputs: images (B, C, S, S) in [-1, 1], or latents (B, N, d) of which the model makes the originals.
        labels: (B,) int64 classes, or (B, D + 1) texts, of the inputs; None is the null class. Not used by an
            unconditional model.
        sampling: schedule, guidance and steps of the samples.
    """
    if not hasattr(model, "predict"):
        z = model.encode(inputs)
        noise = seeded_noise(range(len(z)), model.latent_shape, 0).initial.to(z.device)
        rows = {"originals": inputs, "reconstructions": model.decode(z)}
        for level in LATENT_NOISE:
            rows[f"reconstructions under noise of {level:g} on the latents"] = model.decode(z + level * noise)
        return rows
    originals = inputs if inputs.ndim == 4 else model.to_image(inputs)
    columns, device = originals.shape[0], originals.device
    labels = None if labels is None or not model.label_width else labels.to(device)
    null = ", null class" if model.label_width else ""
    rows = {"originals": originals, f"reconstructions{null}": reconstruct(model, originals)}
    v = model.encode(originals, labels)
    towards = seeded_noise(range(ROTATION_SEED, ROTATION_SEED + columns), model.latent_shape, 0).initial.to(device)
    under = null if labels is None else ", their classes"
    for angle in dict.fromkeys(round(min(float(angle), model.alpha_max), 3) for angle in ANGLES):
        if angle or labels is not None:
            rows[f"latents rotated by {angle:g} degrees{under}"] = model.decode(
                rotate(v, towards, angle), labels, angle
            )
    for steps in dict.fromkeys((1, sampling.steps)):
        rows |= _sample_rows(
            model, SAMPLE_ROWS * columns, device, steps, sampling, labels if model.text_width else None
        )
    return rows


def _sample_rows(
    model: Any, count: int, device: torch.device, steps: int, sampling: SamplingConfig, texts: Tensor | None = None
) -> dict[str, Tensor]:
    """Draw `count` samples of the seeds from 0 on, and refine them where there is a refiner.

    Args:
        texts: (B, D + 1) labels of a model that follows texts, in turn.
    """
    classes = torch.arange(count, device=device) % model.num_classes if model.num_classes else None
    if texts is not None:
        classes = texts[torch.arange(count, device=device) % len(texts)]
    guidance = model.unguided if classes is None else sampling.guidance
    refinement = refinement_of(sampling, guidance if model.unguided == 1 else 1.0)
    noise = seeded_noise(range(count), model.latent_shape, steps - 1, share=sampling.share_noise)
    each = noise.steps.to(device) if isinstance(noise.steps, Tensor) else [one.to(device) for one in noise.steps]
    samples = sample(
        model,
        noise.initial.to(device),
        classes,
        steps=steps,
        schedule=sampling.schedule,
        guidance=guidance,
        guidance_at=sampling.guidance_at,
        step_noise=None if sampling.share_noise and model.reuses_noise else each,
    )
    guided = f", guidance {guidance:g}" if guidance != model.unguided else ""
    name = f"samples in {steps} step{'s' if steps > 1 else ''}, seeds 0 to {count - 1}{guided}"
    rows = {name: samples.images}
    if model.refiner is not None and refinement is not None:
        start = refinement_noise(range(count), model.image_shape).to(device)
        refined = refine_samples(model, samples, classes, refinement, start).images
        rows[f"{name}, refined in {refinement.steps} steps ({refinement.solver})"] = refined
    return rows


def refinement_of(sampling: SamplingConfig, guidance: float) -> Refinement | None:
    """Return how a recipe refines its images, under the guidance of the rough ones by default; None if it does not."""
    steps = getattr(sampling, "refinement_steps", None)
    if steps is None:
        return None
    own = getattr(sampling, "refinement_guidance", None)
    return Refinement(steps, sampling.solver, guidance if own is None else own)  # type: ignore[attr-defined]
