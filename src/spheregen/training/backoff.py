"""Going on where memory does not suffice: smaller micro-batches, which add up to the same step up to rounding."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from spheregen.errors import TrainingError

T = TypeVar("T")


def back_off(
    attempt: Callable[[int], T],
    micro_batch: int,
    *,
    reset: Callable[[], object],
    tell: Callable[[str], None],
    agree: Callable[[bool], bool] = bool,
) -> tuple[T, int]:
    """Run `attempt(micro_batch)`; where memory does not suffice, halve the micro-batch and run it again.

    Args:
        attempt: does its work from the beginning, in passes of so many images.
        micro_batch: to begin with.
        reset: puts away what a failed attempt left behind, such as half of the gradients.
        tell: told of a smaller micro-batch, in one line.
        agree: turns "it failed here" into "it failed somewhere", for processes that must go on alike; then `attempt`
            may not wait for the others.

    Returns:
        The result and the micro-batch that fits.

    Raises:
        TrainingError: not even one image at a time fits.
    """
    while True:
        result: T | None = None
        failed = False
        try:
            result = attempt(micro_batch)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            failed = True
        if not agree(failed):
            return result, micro_batch  # type: ignore[return-value]
        del result
        reset()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        if micro_batch == 1:
            raise TrainingError(
                "not even one image at a time fits into memory; set train.recompute=true, start more processes with "
                "train.parallel=fsdp, or choose a smaller model"
            )
        micro_batch = -(-micro_batch // 2)
        tell(f"memory does not suffice; going on with micro-batches of {micro_batch}, which add up to the same result")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory does not suffice, on a GPU or a CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
