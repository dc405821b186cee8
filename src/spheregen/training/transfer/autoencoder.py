"""Fine-tuning: the weights of a trained model in another one that may differ from it.

What fits is kept. What differs is changed so that the network computes what it did, exactly where that is possible;
the rest starts fresh, without effect where a part can have none. No data is needed.

Legend: K classes, W width, N tokens, d latent channels, P patch, C image channels, k in-context tokens.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from spheregen.errors import ConfigError, ModelFileError
from spheregen.models.autoencoder import AutoencoderConfig, SphereAutoencoder
from spheregen.training.transfer.parts import BY_NUMBER, Fate, Part, Transfer, fit_class_table

NETWORKS = ("encoder", "decoder")
_GATES_OF_ONE = (0.0, 0.0, 1.0, 0.0, 0.0, 1.0)  # shift, scale, gate of the attention, then of the MLP


@torch.no_grad()
def transfer(
    target: SphereAutoencoder,
    source: SphereAutoencoder,
    *,
    target_classes: Sequence[str] = (),
    source_classes: Sequence[str] = (),
) -> Transfer:
    """Put the weights of `source` into `target`, in place and on the CPU; the same inputs give the same weights.

    - Parameters of the same name and shape are kept.
    - Class tables: rows by class name, by number where a side has no names, null to null. A new class starts at the
      null class plus the small random row that the target was built with.
    - Conditional from unconditional: adaLN starts with weights of 0 and gates of 1, so that blocks compute what they
      did. The output's new norm starts with the gain that undoes it for tokens of the typical size, which is measured
      on images that the source generates.
    - Unconditional from conditional: the null class is folded into norms, biases and output linears, exactly in the
      blocks. The output's norm goes away; its typical size is folded in.
    - Another number of tokens: the parts of the mixers that mix tokens start fresh, with a gain of 0.
    - Another patch or number of image channels: kernels and pixel head are resampled, or repeated and averaged.
    - More blocks: the added ones start as the identity. Fewer: the surplus is dropped.
    - Another prior, and a batch norm that comes or goes: nothing can make up for it; weights are kept, and a note
      says so.
    - All else that does not fit starts as the target was built.

    Args:
        target: freshly built, in float32.
        source: on the CPU, in any type; it is not changed.
        target_classes, source_classes: names of the classes, K of each; empty where there are none.

    Raises:
        ConfigError: not one transformer block fits.
        ModelFileError: a weight of the source is not finite.
    """
    check_fits(target.config, source.config)
    for name, tensor in itertools.chain(source.named_parameters(), source.named_buffers()):
        if not bool(tensor.isfinite().all()):
            raise ModelFileError(f"the weight {name} of the model is not finite; the model is broken, take another one")
    if any(parameter.dtype != torch.float32 for parameter in source.parameters()):
        source = copy.deepcopy(source).float()
    plan = _Plan(target, source)
    plan.fit_classes(target_classes, source_classes)
    plan.fit_pixels()
    plan.fit_condition()
    plan.fit_mixers()
    plan.fit_depth()
    plan.note_settings()
    return plan.carry_out()


def check_fits(target: AutoencoderConfig, source: AutoencoderConfig) -> None:
    """Refuse a model of which not one transformer block fits.

    Raises:
        ConfigError: both widths differ.
    """
    theirs, ours = ((c.encoder_size.width, c.decoder_size.width) for c in (source, target))
    if all(a != b for a, b in zip(theirs, ours, strict=True)):
        raise ConfigError(
            f"nothing of the model fits: its encoder and decoder are {theirs[0]} and {theirs[1]} wide, the recipe's "
            f"{ours[0]} and {ours[1]}; set model.encoder and model.decoder to its sizes, or train without --init"
        )


class _Plan:
    """The source's weights on their way to the target: each `fit_` method adapts one difference between the two."""

    def __init__(self, target: SphereAutoencoder, source: SphereAutoencoder) -> None:
        self.target, self.source = target, source
        self.ours, self.theirs = target.config, source.config
        self.parameters = dict(target.named_parameters())
        self.state = {name: parameter.detach() for name, parameter in source.named_parameters()}
        self.adapted: dict[str, str] = {}  # name -> how
        self.starts: dict[str, Tensor] = {}  # of fresh parameters that do not start as they were built
        self.fresh: dict[str, str] = {}  # name -> why
        self.dropped: dict[str, str] = {}
        self.notes: list[str] = []
        self.fitting = [network for network in NETWORKS if self._differ(network, "width") is None]

    def change(self, name: str, value: Tensor, how: str) -> None:
        """Replace a weight of the source."""
        self.state[name] = value.to(torch.float32)
        before = self.adapted.get(name)
        self.adapted[name] = f"{before}, {how}" if before and before != how else how

    def start(self, name: str, value: Tensor | float, why: str) -> None:
        """A parameter of the target that starts fresh, at this value."""
        shape = self.parameters[name].shape
        self.starts[name] = torch.full(shape, value) if isinstance(value, float) else value
        self.fresh[name] = why

    # each difference

    def fit_classes(self, target_names: Sequence[str], source_names: Sequence[str]) -> None:
        ours, theirs = self.ours.num_classes, self.theirs.num_classes
        if not (ours and theirs):
            return
        for network in self.fitting:
            name = f"{network}.trunk.labels.table.weight"
            found = fit_class_table(self.state[name], self.parameters[name].detach(), target_names, source_names)
            if not found.by_name and BY_NUMBER not in self.notes:
                self.notes.append(BY_NUMBER)
            if found.how:
                self.change(name, found.table, found.how)

    def fit_pixels(self) -> None:
        ours, theirs = self.ours, self.theirs
        channels = self._changed("image channels", theirs.image_channels, ours.image_channels)
        patch = self._changed("patch", theirs.patch, ours.patch)
        how = ", ".join(filter(None, (patch and f"resampled, {patch}", channels)))
        if not how:
            return
        if "encoder" in self.fitting:
            name = "encoder.patches.patches.weight"
            kernel = _channels_in(self.state[name], ours.image_channels)
            self.change(name, _patch_kernel(kernel, ours.patch), how)
        if "decoder" not in self.fitting or ours.pixel_head != theirs.pixel_head:
            return
        head = {name.removeprefix("decoder.head."): value for name, value in self.state.items() if ".head." in name}
        change = _linear_head if ours.pixel_head == "linear" else _conv_head
        for name, value in change(head, theirs, ours).items():
            self.change(f"decoder.head.{name}", value, how)

    def fit_condition(self) -> None:
        if (self.ours.num_classes > 0) == (self.theirs.num_classes > 0):
            return
        sizes = _token_sizes(self.source) if self.fitting else {}
        for network in self.fitting:
            # whether the linear behind the output's norm is one that is kept
            linear = "encoder.project" if network == "encoder" else "decoder.head.linear"
            fits = self._shape_fits(f"{linear}.weight")
            if self.ours.num_classes:
                self._make_conditional(network, sizes[network] if fits else None)
            else:
                self._make_unconditional(network, linear, sizes[network])

    def _make_conditional(self, network: str, sizes: Tensor | None) -> None:
        """Blocks as they were, whatever the class; an output norm that changes tokens of typical size little."""
        width = getattr(self.ours, f"{network}_size").width
        why = "conditioning, starting without effect"
        for block in self._common_blocks(network):
            self.start(f"{block}.modulation.linear.weight", 0.0, why)
            gates = torch.tensor(_GATES_OF_ONE).repeat_interleave(width)
            self.start(f"{block}.modulation.linear.bias", gates, why)
        labels = f"{network}.trunk.labels.table.weight"
        self.fresh[labels] = "no classes before"
        new = f"{network}.output.norm.weight"
        why = "new, starting with hardly an effect"
        for name in (new, f"{network}.output.modulation.linear.weight", f"{network}.output.modulation.linear.bias"):
            self.fresh[name] = why if sizes is not None else "new"
        if sizes is not None:
            self.starts[new] = torch.full((width,), float(sizes.mean()))  # nearest to x in x / |x| * gain
        context, positions = f"{network}.trunk.context", f"{network}.trunk.context_positions"
        if context in self.state:
            # the class embedding takes the learned content's place: the null class as before, others very near
            content = self.state.pop(context) - self.parameters[labels].detach()[-1]
            self.change(positions, self.state[positions] + content, "the learned content folded in")

    def _make_unconditional(self, network: str, linear: str, sizes: Tensor) -> None:
        """The null class, for ever: what it shifts, scales and gates becomes part of the linears around."""
        null = self.state.pop(f"{network}.trunk.labels.table.weight")[-1].double()
        how = "the null class folded in"
        for index in range(getattr(self.theirs, f"{network}_size").depth):
            block = f"{network}.trunk.blocks.{index}"
            shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self._modulation(f"{block}.modulation", null, 6)
            parts = (
                ("attention_norm", "attention.qkv", "attention.out", shift_a, scale_a, gate_a),
                ("mlp_norm", "mlp.gate_value", "mlp.out", shift_m, scale_m, gate_m),
            )
            for norm, first, last, shift, scale, gate in parts:
                gain = self.state[f"{block}.{norm}.weight"].double()
                self.change(f"{block}.{norm}.weight", gain * (1 + scale), how)
                weight, bias = (self.state[f"{block}.{first}.{kind}"].double() for kind in ("weight", "bias"))
                self.change(f"{block}.{first}.bias", bias + weight @ shift, how)
                weight, bias = (self.state[f"{block}.{last}.{kind}"].double() for kind in ("weight", "bias"))
                self.change(f"{block}.{last}.weight", gate[:, None] * weight, how)
                self.change(f"{block}.{last}.bias", gate * bias, how)
        shift, scale = self._modulation(f"{network}.output.modulation", null, 2)
        gain = self.state.pop(f"{network}.output.norm.weight").double() * (1 + scale)
        how = "the null class and, approximately, the output norm folded in"
        weight, bias = (self.state[f"{linear}.{kind}"].double() for kind in ("weight", "bias"))
        self.change(f"{linear}.weight", weight * gain * float(sizes.sum() / sizes.square().sum()), how)
        self.change(f"{linear}.bias", bias + weight @ shift, how)
        tokens = self.theirs.in_context_tokens
        if tokens:
            content = null.expand(1, tokens, -1)
            self.change(f"{network}.trunk.context", content, "the null class as their content")

    def _modulation(self, name: str, condition: Tensor, count: int) -> tuple[Tensor, ...]:
        weight, bias = (self.state.pop(f"{name}.linear.{kind}").double() for kind in ("weight", "bias"))
        return (weight @ functional.silu(condition) + bias).chunk(count)

    def fit_mixers(self) -> None:
        tokens = self._changed("tokens", self.theirs.tokens, self.ours.tokens)
        for network in NETWORKS:
            depth = getattr(self.ours, f"{network}_mixer_depth")
            before = getattr(self.theirs, f"{network}_mixer_depth")
            if other := self._differ(network, "latent channels" if network == "encoder" else "width"):
                # gains and token mixing would fit, but not to what they are applied to
                for name in self._names(f"{network}.mixer"):
                    self.fresh[name] = other
                    if name.endswith("_gain"):
                        self.starts[name] = torch.zeros(1)
                continue
            for index in range(depth):
                block = f"{network}.mixer.blocks.{index}"
                if index >= before:
                    for name in self._names(block):
                        self.fresh[name] = "blocks added, starting as the identity"
                    for gain in ("token_gain", "channel_gain"):
                        self.starts[f"{block}.{gain}"] = torch.zeros(1)
                elif tokens:
                    for name in self._names(f"{block}.token_mlp"):
                        self.fresh[name] = f"{tokens}: their mixing starts anew, at a gain of 0"
                    self.start(f"{block}.token_gain", 0.0, self.fresh[f"{block}.token_mlp.0.weight"])
            if depth:
                self._drop_blocks(f"{network}.mixer", before, depth)

    def fit_depth(self) -> None:
        for network in self.fitting:
            depth, before = (getattr(config, f"{network}_size").depth for config in (self.ours, self.theirs))
            for index in range(before, depth):
                block = f"{network}.trunk.blocks.{index}"
                for name in self._names(block):
                    self.fresh[name] = "blocks added, starting as the identity"
                zero = ("modulation.linear",) if self.ours.num_classes else ("attention.out", "mlp.out")
                for layer in zero:
                    for kind in ("weight", "bias"):
                        self.start(f"{block}.{layer}.{kind}", 0.0, self.fresh[f"{block}.{layer}.{kind}"])
            self._drop_blocks(f"{network}.trunk", before, depth)

    def note_settings(self) -> None:
        """Settings that no weight shows."""
        ours, theirs = self.ours, self.theirs
        for network in self.fitting:
            mine, other = getattr(ours, f"{network}_size"), getattr(theirs, f"{network}_size")
            if heads := self._changed(f"{network} heads", other.heads, mine.heads):
                self.notes.append(f"{heads}: its attention keeps its weights, but not what it computes")
            if ours.in_context_tokens and theirs.in_context_tokens and mine.in_context_start != other.in_context_start:
                self.notes.append(f"the {network}'s in-context tokens join before another block")
        if tokens := self._changed("in-context tokens", theirs.in_context_tokens, ours.in_context_tokens):
            self.notes.append(f"{tokens}: blocks keep their weights, but see other tokens")
        if ours.spherify_decoder_blocks != theirs.spherify_decoder_blocks or (
            ours.spherify_decoder_blocks and ours.decoder_size.depth != theirs.decoder_size.depth
        ):
            self.notes.append("the decoder's tokens are spherified after other blocks than before")
        if activation := self._changed("output_activation", theirs.output_activation, ours.output_activation):
            self.notes.append(f"{activation}: weights are kept, colours change")
        if prior := self._changed("prior", theirs.prior, ours.prior):
            self.notes.append(f"{prior}: weights are kept, but the decoder sees latents of another scale")
        if norm := self._changed("latent_norm", theirs.latent_norm, ours.latent_norm):
            self.notes.append(f"{norm}: weights are kept, but each latent channel has another mean and scale")

    # the end

    def carry_out(self) -> Transfer:
        self._copy_statistics()
        parts = []
        for name, parameter in self.parameters.items():
            fate: Fate = "fresh"
            value = self.starts.get(name)
            reason = self.fresh.get(name)
            if reason is None and self._shape_fits(name):
                value, reason = self.state[name], self.adapted.get(name, "")
                fate = "adapted" if name in self.adapted else "kept"
            if value is not None:
                parameter.copy_(value)
            parts.append(Part(name, parameter.numel(), fate, self._cause(name) if reason is None else reason))
        for name in self.state.keys() - self.parameters.keys():
            self.dropped.setdefault(name, self._cause(name))
        sizes = {name: parameter.numel() for name, parameter in self.source.named_parameters()}
        parts += [Part(name, sizes[name], "dropped", self.dropped[name]) for name in sizes if name in self.dropped]
        return Transfer(tuple(parts), tuple(self.notes))

    # helpers

    def _copy_statistics(self) -> None:
        """What the source's batch norm knows of its data, where ours has the same channels."""
        ours, theirs = self.target.encoder.norm, self.source.encoder.norm
        if ours is not None and theirs is not None and ours.running_mean.shape == theirs.running_mean.shape:
            ours.load_state_dict(theirs.state_dict())

    def _names(self, prefix: str) -> list[str]:
        return [name for name in self.parameters if name.startswith(f"{prefix}.")]

    def _shape_fits(self, name: str) -> bool:
        ours, theirs = self.parameters.get(name), self.state.get(name)
        return ours is not None and theirs is not None and ours.shape == theirs.shape

    def _common_blocks(self, network: str) -> list[str]:
        depth = min(getattr(config, f"{network}_size").depth for config in (self.ours, self.theirs))
        return [f"{network}.trunk.blocks.{index}" for index in range(depth)]

    def _drop_blocks(self, prefix: str, before: int, depth: int) -> None:
        for name in self.state:
            if (
                name.startswith(f"{prefix}.blocks.")
                and int(name.removeprefix(f"{prefix}.blocks.").split(".")[0]) >= depth
            ):
                self.dropped[name] = f"only {depth} of its {before} blocks have a place"

    def _changed(self, what: str, before: object, now: object) -> str | None:
        return None if before == now else f"{what} {before} -> {now}"

    def _differ(self, network: str, what: str) -> str | None:
        """How one of the sizes that decide shapes differs, None where it does not."""
        ours, theirs = self.ours, self.theirs
        if what == "width":
            sizes = [getattr(config, f"{network}_size").width for config in (theirs, ours)]
            return self._changed("width", *sizes)
        values = {
            "latent channels": (theirs.channels, ours.channels),
            "tokens": (theirs.tokens, ours.tokens),
            "pixel head": (theirs.pixel_head, ours.pixel_head),
            "in-context tokens": (theirs.in_context_tokens, ours.in_context_tokens),
        }
        return self._changed(what, *values[what])

    def _cause(self, name: str) -> str:
        """Why a parameter has no fitting counterpart."""
        network, _, rest = name.partition(".")
        part = rest.partition(".")[0]
        relevant = {
            "project": ("width", "latent channels"),
            "embed": ("width", "latent channels"),
            "mixer": (),
            "head": ("width", "pixel head"),
        }.get(part, ("width", "in-context tokens") if ".context" in name else ("width",))
        causes = [cause for what in relevant if (cause := self._differ(network, what))]
        return ", ".join(causes) or ("not in the model" if name in self.parameters else "not in the recipe")


def _token_sizes(model: SphereAutoencoder) -> Mapping[str, Tensor]:
    """The RMS of each token behind the last block, (B * N,) for `encoder` and `decoder`.

    Measured without data: random points of the sphere are decoded, and what they show is encoded, as the null class.
    """
    found: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(0)
    encoder, decoder = model.encoder, model.decoder
    watched: Mapping[str, nn.Module] = {
        "encoder": encoder.project if encoder.output is None else encoder.output.norm,
        "decoder": decoder.head if decoder.output is None else decoder.output.norm,
    }

    def watch(network: str) -> None:
        def look(module: nn.Module, arguments: tuple[Tensor]) -> None:
            found[network] = arguments[0].square().mean(dim=-1).sqrt().flatten().clamp(min=1e-6)

        handles.append(watched[network].register_forward_pre_hook(look))

    handles: list[torch.utils.hooks.RemovableHandle] = []
    training = model.training
    try:
        for network in NETWORKS:
            watch(network)
        tokens, channels = model.config.tokens, model.config.channels
        count = max(2, min(64, 1024 // tokens))
        points = model.prior.project(torch.randn(count, tokens, channels, generator=generator))
        model.eval()  # statistics of a batch norm must not run along
        encoder(decoder(points).clamp(-1, 1))
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return found


def _channels_in(kernel: Tensor, channels: int) -> Tensor:
    """A kernel (W, C, P, P) for another C: the same answer to grey pictures, as one channel or as three."""
    if kernel.shape[1] == channels:
        return kernel
    return kernel.repeat(1, channels, 1, 1) / channels if kernel.shape[1] == 1 else kernel.sum(1, keepdim=True)


def _channels_out(values: Tensor, channels: int, axis: int) -> Tensor:
    """One output channel repeated, or three averaged."""
    if values.shape[axis] == channels:
        return values
    if channels == 1:
        return values.mean(axis, keepdim=True)
    return values.repeat_interleave(channels, axis)


def _patch_kernel(kernel: Tensor, patch: int) -> Tensor:
    """A kernel (W, C, P, P) for another patch: the same answer to a patch that is resized with it.

    The pseudo-inverse of bilinear resizing, exact for larger patches; FlexiViT (Beyer et al. 2023, arXiv 2212.08013).
    """
    if kernel.shape[-1] == patch:
        return kernel
    inverse: Tensor = torch.linalg.pinv(_bilinear(kernel.shape[-1], patch).T)
    resized: Tensor = inverse @ kernel.double() @ inverse.T
    return resized


def _bilinear(before: int, after: int, *, margin: int = 0) -> Tensor:
    """The matrix (after + 2 margins, before + 2 margins) that resizes a line of pixels, with some more on both ends."""
    width = before + 2 * margin
    places = (torch.arange(-margin, after + margin, dtype=torch.float64) + 0.5) * before / after - 0.5 + margin
    return (1 - (places.clamp(0, width - 1)[:, None] - torch.arange(width)).abs()).clamp(min=0)


def _linear_head(head: Mapping[str, Tensor], before: AutoencoderConfig, now: AutoencoderConfig) -> Mapping[str, Tensor]:
    """A `LinearPixelHead` that paints the same patch at another size, or in another number of channels."""
    resize = _bilinear(before.patch, now.patch)
    channels, changed = now.image_channels, {}
    for kind in ("weight", "bias"):
        pixels = head[f"linear.{kind}"].double().reshape(before.image_channels, before.patch, before.patch, -1)
        pixels = _channels_out(pixels, channels, 0)
        if before.patch != now.patch:
            pixels = torch.einsum("ip,jq,cpqw->cijw", resize, resize, pixels)
        changed[f"linear.{kind}"] = pixels.reshape(-1, *head[f"linear.{kind}"].shape[1:])
    if channels != before.image_channels:
        smooth, bias = head["smooth.weight"], head["smooth.bias"]
        if channels == 1:
            changed["smooth.weight"] = smooth.sum(1, keepdim=True).mean(0, keepdim=True)
        else:
            changed["smooth.weight"] = smooth * torch.eye(channels)[:, :, None, None]
        changed["smooth.bias"] = _channels_out(bias, channels, 0)
    return changed


def _conv_head(head: Mapping[str, Tensor], before: AutoencoderConfig, now: AutoencoderConfig) -> Mapping[str, Tensor]:
    """A `ConvPixelHead` whose last kernel, a patch and a pixel around it, paints about the same at another size."""
    kernel = _channels_out(head["up.weight"], now.image_channels, 1)
    if before.patch != now.patch:
        resize = _bilinear(before.patch, now.patch, margin=1)
        kernel = resize @ kernel.double() @ resize.T
    return {"up.weight": kernel, "up.bias": _channels_out(head["up.bias"], now.image_channels, 0)}
