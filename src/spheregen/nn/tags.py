"""Layers tag their own parameters; the optimiser reads the tags.

Tags: `decay` (weight decay may apply: matrices and kernels) or `no_decay` (biases, norm gains, embeddings, learned
scalars), exactly one of them on each parameter; `hidden` on the matrices inside transformer blocks, which Muon may
train; `encoder` where a model trains that part at its own learning rate.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

DECAY = "decay"
NO_DECAY = "no_decay"
HIDDEN = "hidden"
ENCODER = "encoder"


def tag(parameters: Iterable[nn.Parameter], *names: str) -> None:
    """Add tags to parameters."""
    for parameter in parameters:
        parameter.sphere_tags = tags_of(parameter) | set(names)  # type: ignore[attr-defined]


def tags_of(parameter: nn.Parameter) -> frozenset[str]:
    """The tags of a parameter, empty if no layer tagged it."""
    return frozenset(getattr(parameter, "sphere_tags", ()))


def tag_layer(layer: nn.Module) -> None:
    """Tag a plain linear or convolution: its weight `decay`, its bias `no_decay`."""
    for name, parameter in layer.named_parameters(recurse=False):
        tag([parameter], DECAY if name == "weight" else NO_DECAY)
