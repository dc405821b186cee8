"""Known degradations of images, and the solver that undoes them with the sphere as a prior.

operator = sg.restoration.Blur(sg.restoration.gaussian_kernel(1.5))
out = pipe.restore(y, operator, noise=0.02)

See `Pipeline.restore` for images, `restore` here for tensors in [-1, 1].
"""

from __future__ import annotations

from spheregen.sampling.restoration import *  # noqa: F403
from spheregen.sampling.restoration import __all__ as __all__
