"""Is a latent space what the method promises: uniform data, images at all angles, a loop that denoises?"""

from spheregen.evaluation.sphere.angle_law import AngleLaw
from spheregen.evaluation.sphere.report import SphereReport, StudySizes, sphere_report
from spheregen.evaluation.sphere.uniformity import PointTest, UniformityTest, uniformity_test

__all__ = [
    "AngleLaw",
    "PointTest",
    "SphereReport",
    "StudySizes",
    "UniformityTest",
    "sphere_report",
    "uniformity_test",
]
