"""From points on the sphere to images: the few-step loop, its schedules and guidance, editing and restoration."""

from spheregen.sampling.editing import MASKS, Joined, crossover_mask, edit, revise, vary
from spheregen.sampling.flow import SOLVERS, Refinement, integrate, refine_images, refine_samples, refinement_noise
from spheregen.sampling.interpolation import CLASS_PATHS, blend, interpolate, lerp, mix_conditions
from spheregen.sampling.loop import (
    GUIDANCES,
    Callback,
    ClassifierFreeGuidance,
    Guidance,
    Guided,
    GuidedModel,
    RotationGuidance,
    Samples,
    Start,
    decode,
    guide,
    reconstruct,
    refine,
    sample,
)
from spheregen.sampling.restoration import restore
from spheregen.sampling.schedules import SCHEDULES, Angles, Schedule, edit_angles, generation_angles
from spheregen.sampling.seeds import SeededNoise, seeded_noise

__all__ = [
    "CLASS_PATHS",
    "GUIDANCES",
    "MASKS",
    "SCHEDULES",
    "SOLVERS",
    "Angles",
    "Callback",
    "ClassifierFreeGuidance",
    "Guidance",
    "Guided",
    "GuidedModel",
    "Joined",
    "Refinement",
    "RotationGuidance",
    "Samples",
    "Schedule",
    "SeededNoise",
    "Start",
    "blend",
    "crossover_mask",
    "decode",
    "edit",
    "edit_angles",
    "generation_angles",
    "guide",
    "integrate",
    "interpolate",
    "lerp",
    "mix_conditions",
    "reconstruct",
    "refine",
    "refine_images",
    "refine_samples",
    "refinement_noise",
    "restore",
    "revise",
    "sample",
    "seeded_noise",
    "vary",
]
