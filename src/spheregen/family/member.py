"""One record for each member of the family: everything that the rest of the library asks of it.

Loading, saving, training, cost, card and `info` read these records; none of them knows which members exist.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from spheregen.family.objective import Frozen, Objective
from spheregen.family.recipe import Recipe
from spheregen.measure.cost import Cost


@dataclass(frozen=True)
class Inner:
    """A second network, which a model folder keeps in a sub-folder that is a model folder itself."""

    folder: str
    """Name of the sub-folder, such as `tokenizer`."""
    attribute: str
    """Of the assembled generator, which holds the second network there."""
    is_tokenizer: bool
    """It is opened as a tokenizer, not as a generator."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """A member of the family.

    Legend: `config` is the frozen dataclass of an architecture; the network of a folder is the `nn.Module` whose
    weights `model.safetensors` holds; the model is what users get: the network itself, or one assembled of it and an
    inner one.
    """

    kind: str
    """Its name in recipes."""
    title: str
    """One sentence for the model card, with its source."""
    tags: Sequence[str] = ()
    """Of the model card."""
    config: type[Any]
    """The class of its configurations; has `image_size`, `image_channels`, and `num_classes` if it generates."""
    network: type[nn.Module]
    """The class of its network, whose name `config.json` holds."""
    build: Callable[[Any], nn.Module]
    """A network with fresh weights from a configuration."""
    generates: bool = True
    """False for a tokenizer, which has no images of its own to make."""
    inner: Inner | None = None
    """The second network, if it needs one."""
    attribute: str = ""
    """The attribute of an assembled model that holds the network; empty where the network is the model."""
    assemble: Callable[[Any, Any], nn.Module] = lambda network, inner: network
    """The model of a network and its inner one (None without)."""
    as_tokenizer: Callable[[Any], nn.Module] | None = None
    """Makes a tokenizer of a network; None where it is none."""
    recipe: type[Recipe] | None = None
    """The class of its recipes; None where it is not trained here."""
    objective: Callable[[Any, Frozen], Objective] | None = None
    """Makes what the trainer trains, from a recipe and the frozen networks that it asks for."""
    inputs: Literal["images", "latents"] = "images"
    """The inputs of its training: images, or a cache of latents."""
    image_shape: Callable[[Any], tuple[int, int, int]] = lambda c: (c.image_channels, c.image_size, c.image_size)
    """The shape (C, S, S) of an image, from a configuration."""
    latent_shape: Callable[[Any], tuple[int, ...]] = lambda c: (c.tokens, c.channels)
    """The shape (N, d) of a latent, from a configuration; that of the inner network where the network has none."""
    inner_config: Callable[[Any, Callable[..., Any]], Any] = lambda recipe, read: None
    """The configuration of a recipe's inner network (None: unknown), where `read(name, part)` gives that of a model by
    its name, or of a sub-folder of it."""
    inner_stub: Callable[[Any], nn.Module] | None = None
    """Makes what stands for an unknown inner network in estimates, from a configuration."""
    complete: Callable[[Any, Any], Any] = lambda config, inner: config
    """A configuration with everything that follows from the inner network."""
    cost: Callable[[Any, Callable[[Any], Cost]], Cost]
    """The cost of a model, on the meta device or a real one; the second argument gives that of an inner model."""
    facts: Callable[[Any], Sequence[tuple[str, str]]] = lambda config: ()
    """Rows of the model card, from a configuration."""
    usage: str = ""
    """Python code for the model card in place of that of a generator."""

    def input_shape(self, config: Any) -> tuple[int, ...]:
        """Return the shape of one training input, from a configuration."""
        return self.latent_shape(config) if self.inputs == "latents" else self.image_shape(config)
