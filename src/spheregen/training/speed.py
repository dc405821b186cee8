"""How fast a run is: images a second, and the share of the machine's matrix peak."""

from __future__ import annotations

import time

from spheregen.measure.timing import matmul_peak
from spheregen.training.estimate import LONG_RUN, step_cost
from spheregen.training.run import Run


class Speed:
    """Measures a run between the entries of its log."""

    def __init__(self, run: Run) -> None:
        self._run, self._time, self._step = run, time.monotonic(), run.start
        step = run.step
        self._peak = matmul_peak(step.device, step.precision) if run.total >= LONG_RUN else None
        self._flops = 0.0 if self._peak is None else step_cost(run.recipe).flops_per_image

    def since_last(self, done: int) -> dict[str, float]:
        """Return `images_per_second` since the last call, and `mfu` of long runs."""
        now = time.monotonic()
        speed = (done - self._step) * self._run.recipe.train.batch_size / max(now - self._time, 1e-9)
        self._time, self._step = now, done
        share = {"mfu": speed * self._flops / (self._peak * self._run.world.size)} if self._peak else {}
        return {"images_per_second": speed, **share}
