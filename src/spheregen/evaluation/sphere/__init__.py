"""Studies of a latent space: even coverage of the sphere, images at all angles, a loop that denoises."""

from spheregen.evaluation.sphere.section import sphere_section, sphere_warnings
from spheregen.evaluation.sphere.study import study_sphere

__all__ = ["sphere_section", "sphere_warnings", "study_sphere"]
