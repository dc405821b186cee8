"""Building a network whose weights will be replaced at once, or are not wanted at all: no random numbers are drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

_INITIALISERS = (nn.init.uniform_, nn.init.normal_, nn.init.kaiming_uniform_)
"""Those of torch.nn.init that ask a mode first; the others arrive as the draws of tensors that they make."""


class Uninitialised(TorchFunctionMode):
    """Inside this context modules are built without drawing their initial weights.

    For weights that are read from a file next: a giant model loads in seconds, and the caller's random state is not
    touched. What is not read stays without meaning, so all keys must be checked.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _INITIALISERS:
            return args[0] if args else kwargs["tensor"]
        if func in (torch.Tensor.normal_, torch.Tensor.uniform_):
            # Not left as it was: a truncated normal draws until nothing lies outside, which the mean (of a normal) and
            # the lower bound (of a uniform draw) do not.
            return args[0].fill_(args[1] if len(args) > 1 else 0.0)
        if func is torch.randn:
            return torch.empty(*args, **kwargs)
        return func(*args, **kwargs)


@contextmanager
def weightless() -> Iterator[None]:
    """Inside this context modules are built on the meta device, for their shapes alone.

    Initialisers are skipped there too: on that device they would import torch's compiler, which takes seconds.
    """
    with torch.device("meta"), Uninitialised():
        yield
