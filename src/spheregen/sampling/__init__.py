"""From points on the sphere to images: the few-step loop, its schedules and guidance, editing and restoration."""

from spheregen.sampling.editing import MASKS, Joined, crossover_mask, edit, stitch, vary
from spheregen.sampling.flow import SOLVERS, integrate
from spheregen.sampling.guidance import ClassifierFreeGuidance, Guidance, Guided, Steered, guide
from spheregen.sampling.interpolation import blend, interpolate, lerp
from spheregen.sampling.loop import Samples, reconstruct, refine, sample
from spheregen.sampling.refinement import Refinement, Rough, refine_images, refine_samples, refinement_noise
from spheregen.sampling.restoration import Masked, Observation, Reduced, restore
from spheregen.sampling.schedules import SCHEDULES, Schedule, edit_radii, refinement_radii
from spheregen.sampling.seeds import SeededNoise, seeded_noise

__all__ = [
    "MASKS",
    "SCHEDULES",
    "SOLVERS",
    "ClassifierFreeGuidance",
    "Guidance",
    "Guided",
    "Joined",
    "Masked",
    "Observation",
    "Reduced",
    "Refinement",
    "Rough",
    "Samples",
    "Schedule",
    "SeededNoise",
    "Steered",
    "blend",
    "crossover_mask",
    "edit",
    "edit_radii",
    "guide",
    "integrate",
    "interpolate",
    "lerp",
    "reconstruct",
    "refine",
    "refine_images",
    "refine_samples",
    "refinement_noise",
    "refinement_radii",
    "restore",
    "sample",
    "seeded_noise",
    "stitch",
    "vary",
]
