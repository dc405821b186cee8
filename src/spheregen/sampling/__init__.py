"""From points on the sphere to images: the few-step loop, its schedules and guidance."""

from spheregen.sampling.guidance import Guided, guide
from spheregen.sampling.loop import Samples, edit, reconstruct, refine, sample
from spheregen.sampling.schedules import edit_radii, refinement_radii
from spheregen.sampling.seeds import SeededNoise, seeded_noise

__all__ = [
    "Guided",
    "Samples",
    "SeededNoise",
    "edit",
    "edit_radii",
    "guide",
    "reconstruct",
    "refine",
    "refinement_radii",
    "sample",
    "seeded_noise",
]
