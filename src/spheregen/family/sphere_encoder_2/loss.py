"""The training objective of Sphere Encoder 2: one noisy point a sample, and losses that its angle parts.

Below about 70 degrees a decode is compared with its image, above with images in general: by its code, by two denoisers
of frozen features (`score`), and by Frechet distances (`frechet`).

Sources: *Sphere Encoder 2* (arXiv 2610.02208) and facts of its code (method.md, section 4). Legend: G samples of the
global batch, B those at hand, a angles, f the projection to the sphere, E the encoder, D the decoder, y labels, x
images, x' their decodes, w_low and w_high the weights of the regimes, sg the stop-gradient.
"""

from __future__ import annotations

import dataclasses
import math
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from spheregen.conditioning import Labels
from spheregen.devices import own_defaults
from spheregen.errors import ConfigError, ModelFileError
from spheregen.family.objective import Batches, Gather, Objective, Part
from spheregen.family.sphere_encoder_2.features import FeatureMaps, affine, most_shift, shifted
from spheregen.family.sphere_encoder_2.frechet import FrechetLoss
from spheregen.family.sphere_encoder_2.network import AngleDecoder, OwnEncoder, PretrainedEncoder, SphereEncoder2
from spheregen.family.sphere_encoder_2.score import (
    ScoreMatching,
    ScoreOptimizer,
    moments_of,
    pull_loss,
)
from spheregen.family.sphere_encoder_2.terms import SphereEncoder2LossConfig, SphereNoise
from spheregen.family.terms import (
    LossTerms,
    check_perceived,
    latent_distances,
    perceived,
    pixel_distances,
    to_unit,
    weighted_total,
)
from spheregen.measure.metrics import Moments
from spheregen.networks.perceptual import PerceptualLoss
from spheregen.noise import gaussian, stratified
from spheregen.sphere import full_precision, upcast
from spheregen.tensors import weights_hash

CLASSIFIER_WEIGHT = 0.1
"""Of the classifier's part of the perceptual term: (maps + 0.1 * classifier) / 1.1."""
MEAN_EPS, SCORE_EPS = 1e-6, 1e-8
"""Added to a sum of weights before a mean is divided by it: of all terms, and of distribution matching."""
COSINE_EPS = 1e-6


class Learned(nn.Module):
    """All that learns: the decoder, and an encoder of its own or the linear behind a frozen one; or all of that one,
    where parts of it learn."""

    def __init__(self, decoder: AngleDecoder, encoder: nn.Module | None) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder


class SphereEncoder2Objective(Objective):
    """A Sphere Encoder 2 and its loss (method.md, section 4). A frozen encoder stays out of EMA and checkpoints.

    Args:
        network: learns, but for a frozen encoder.
        loss: weights of the terms.
        perceptual: the perceptual distance; without one (None) its term is left out.
        features: the network of distribution matching, where a term needs it.
        judge: that of the judge, likewise.

    Raises:
        ConfigError: without a perceptual network nothing ties decodes to images; or a Frechet term of an encoder that
            learns.
    """

    model: Learned

    def __init__(
        self,
        network: SphereEncoder2,
        loss: SphereEncoder2LossConfig,
        perceptual: PerceptualLoss | None = None,
        features: FeatureMaps | None = None,
        judge: FeatureMaps | None = None,
    ) -> None:
        self.network, self.config = network, loss
        self.use_perceptual(perceptual, "distance", loss.distance)
        encoder = network.encoder
        thawed = network.config.trained_blocks > 0 or network.config.trained_norms
        if thawed:
            encoder.frozen.thaw(network.config.trained_blocks, network.config.trained_norms)
        self.frozen_encoder = not (thawed or isinstance(encoder, OwnEncoder))
        adapter = getattr(encoder, "adapter", None)
        self.model = Learned(network.decoder, adapter if self.frozen_encoder else encoder)
        own = []
        if self.frozen_encoder:  # a network of others, or a tokenizer
            own = [encoder.frozen if isinstance(encoder, PretrainedEncoder) else encoder.tokenizer]
            weights = own[0].state_dict()
            if not any(tensor.is_meta for tensor in weights.values()):  # as in estimates
                self.facts = {**self.facts, "encoder": weights_hash(weights)}
        self.features, self.judge = features, judge
        self.frozen = [*own, *self.frozen, *(each for each in (features, judge) if each is not None)]
        self.score: ScoreMatching | None = None
        self.optimizer: ScoreOptimizer | None = None
        size, config = network.config.image_size, network.config
        if loss.needs_perceptual:
            check_perceived(size, loss.perceptual_scale)
        if loss.score_matching:
            self.score = ScoreMatching(loss.score, loss.features.shapes(size), config.num_classes)
            self.optimizer = ScoreOptimizer(self.score, lambda tensor: self.world.mean(tensor))
        frechets: dict[str, nn.Module] = {}
        self.by_class_token = loss.frechet_encoder > 0 and loss.frechet.pool == "cls"
        if self.by_class_token and not (isinstance(encoder, PretrainedEncoder) and encoder.frozen.has_class_token):
            raise ConfigError("loss.frechet.pool=cls needs a frozen encoder with a class token; take mean or token")
        if loss.frechet_encoder:
            wide = encoder.frozen.channels if self.by_class_token else config.channels
            frechets["frechet_encoder"] = FrechetLoss(wide, loss.frechet, "encoder")
        if loss.frechet_features:
            frechets["frechet_features"] = FrechetLoss(loss.features.final_channels, loss.frechet, "features")
        if loss.frechet_judge:
            channels = loss.judge.shapes(size)[-1][1]
            frechets["frechet_judge"] = FrechetLoss(
                channels, loss.frechet, "judge", floor=1e-12, ridge=0.0, seed=loss.judge_seed
            )
        self.frechets = nn.ModuleDict(frechets)
        self.beside = nn.ModuleDict({"frechet": self.frechets})
        if self.score is not None:
            self.beside["score"] = self.score
        self._before: list[Tensor] | None = None
        """What runs along in the matching, as the last step left it, while a step goes on."""
        self._totals: dict[str, Tensor] | None = None
        """Sums over the global batch, of a batch in several parts; what runs along is at its place already."""
        self._recorded: dict[str, Tensor] | None = None
        """Sums over the parts that were seen, while these sums are being found."""
        self._balance: Tensor | None = None
        """The weights of the layers, of a batch in several parts."""

    def generator(self, model: nn.Module) -> SphereEncoder2:
        learned = cast(Learned, model)
        if not self.frozen_encoder:
            return SphereEncoder2(self.network.config, learned.encoder, learned.decoder)
        encoder = PretrainedEncoder(self.network.config, self.network.encoder.frozen, learned.encoder)
        return SphereEncoder2(self.network.config, encoder, learned.decoder)

    def prepare(self, batches: Batches, gather: Gather) -> None:
        """Measure the judge's features of the data."""
        if self.judge is None or "frechet_judge" not in self.frechets:
            return
        reference = cast(FrechetLoss, self.frechets["frechet_judge"])
        if self.config.judge_reference is not None:
            reference.set_reference(*_read_reference(Path(self.config.judge_reference)))
            return
        own = Moments()
        with torch.no_grad():
            for images, _ in batches:
                own.update(self.judge(to_unit(images))[-1].mean(dim=1))
        total = Moments()
        for part in gather(own):
            total.merge(part)
        found = total.gaussian
        reference.set_reference(found.mean.cpu(), found.covariance.cpu())

    # random numbers ---------------------------------------------------------------------------------------------------

    @own_defaults()
    def draw(
        self, batch: int, generator: torch.Generator, rows: slice | None = None, *, progress: float = 0.0
    ) -> SphereNoise:
        """Return the random numbers of a global batch, or of these rows of it, from a CPU generator."""
        rows, config, model = rows or slice(0, batch), self.config, self.network
        # every step has one exact 0 and one exact largest angle
        angle = (math.radians(model.config.max_angle) * stratified(batch, generator=generator).double()).float()
        low = config.low(angle)
        high = 1 - low
        dropped = torch.rand(batch, generator=generator) < config.label_dropout
        noise = gaussian(batch, model.latent_shape, generator, rows)
        found = SphereNoise(
            angle=angle[rows],
            noise=noise,
            dropped=dropped[rows],
            low=(low * batch / (low.sum() + MEAN_EPS))[rows],
            high=(high * batch / (high.sum() + MEAN_EPS))[rows],
            share=(high * batch / (high.sum() + SCORE_EPS))[rows],
            weight=high[rows],
            samples=batch,
            progress=progress,
        )
        more: dict[str, Any] = {}
        if config.path_drop:
            blocks = len(model.decoder.trunk.blocks)
            more["kept"] = _kept(batch, (blocks, 2), config.path_drop, generator)
            if isinstance(model.encoder, OwnEncoder):
                more["kept_encoder"] = _kept(
                    batch, (2, len(model.encoder.trunk.blocks), 2), config.path_drop, generator
                )
        if config.perceptual:
            more["affine"] = self._affine(batch, generator)
        if config.needs_features:
            most = most_shift(model.config.image_size, config.feature_shift)
            moves = torch.randint(-most, most + 1, (batch, 2, 2), generator=generator)
            flips = torch.randint(0, 2, (batch, 2, 1), generator=generator)
            more["moves"] = torch.cat([moves, flips], dim=2)
        if self.score is not None:
            layers, score = len(self.score.shapes), config.score
            more["normal"] = torch.randn(batch, layers, 3, generator=generator)
            more["seeds"] = torch.randint(2**62, (batch,), generator=generator)
            if score.path_drop:
                more["kept_score"] = _kept(batch, (layers, 4, score.depth, 2), score.path_drop, generator)
        return dataclasses.replace(found, **{name: each[rows] for name, each in more.items()})

    def _affine(self, batch: int, generator: torch.Generator) -> Tensor:
        config = self.config
        flips = torch.where(torch.rand(batch, 1, generator=generator) < config.flip, -1.0, 1.0)
        moves = config.shift * (2 * torch.rand(batch, 2, generator=generator) - 1)
        least, most = config.scale
        scale = least + (most - least) * torch.rand(batch, 1, generator=generator)
        return torch.cat([flips, moves, scale], dim=1)

    # the loss ---------------------------------------------------------------------------------------------------------

    def loss(self, inputs: Tensor, labels: Labels, noise: SphereNoise) -> LossTerms:
        """Return the loss of images (B, C, S, S) in [-1, 1] with labels (B,), or None for an unconditional model."""
        model, config, weights = self.network, self.config, self.config.weights()
        on = noise.each(lambda tensor: tensor.to(inputs.device))
        share = len(inputs) / noise.samples
        z, whole = self._encode(inputs, None if on.kept_encoder is None else on.kept_encoder[:, 0])
        point = model.prior.project(z)
        v = model.prior.perturb(point, on.noise.to(z.dtype), on.angle)
        condition = model.condition(labels if model.label_width else None).dropped(on.dropped)
        decoded = model.decoder(v, condition, on.angle, kept=on.kept)
        x, y = to_unit(inputs), to_unit(decoded)

        terms: dict[str, Tensor] = {}
        observed: dict[str, Tensor] = {"latent": z.detach(), "data": x, "output": y.detach()}
        if weights["distance"]:
            terms["distance"] = (on.low * pixel_distances(y, x, config.distance_kind)).mean()
        if self.perceptual is not None and weights["perceptual"]:
            assert on.affine is not None
            terms["perceptual"] = self._perceptual(self.perceptual, y, x, on.low, on.affine)
        if config.encodes_again:
            kept = None if on.kept_encoder is None else on.kept_encoder[:, 1]
            again, whole_again = self._encode(upcast(decoded), kept)
            if weights["latent_consistency"]:
                terms["latent_consistency"] = (on.high * latent_distances(again, point.detach())).mean()
            if weights["frechet_encoder"]:
                real, ours = whole, whole_again
                if real is None or ours is None:
                    real, ours = point, model.prior.project(again)
                terms["frechet_encoder"] = self._frechet("frechet_encoder", real.detach(), ours, on, share)
        if self.features is not None:
            found, seen = self._matching(self.features, x, y, labels, on, share)
            terms, observed = terms | found, observed | seen
        if self.judge is not None and weights["frechet_judge"]:
            rows = self.judge(y)[-1].mean(dim=1)
            terms["frechet_judge"] = self._frechet("frechet_judge", None, rows, on, share)
        return weighted_total(terms, weights, observed=observed)

    def _encode(self, images: Tensor, kept: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return E(x) in float32 or wider, under autocast too, and the class token where a term is of it."""
        if not self.by_class_token:
            return upcast(self.network.encoder(images, kept=kept)), None
        tokens, whole = self.network.encoder(images, class_token=True)
        return upcast(tokens), upcast(whole)

    def _perceptual(self, perceptual: PerceptualLoss, y: Tensor, x: Tensor, low: Tensor, moves: Tensor) -> Tensor:
        """(maps at low angles + 0.1 * classifier at all angles) / 1.1; both images under the same random affine map."""
        scale = self.config.perceptual_scale
        with torch.no_grad():
            maps, logits = perceptual.maps(perceived(x, scale)), perceptual.logits(affine(x, moves))
        near = (low * perceptual.map_distance(perceptual.maps(perceived(y, scale)), maps)).mean()
        # a mean over the batch, which the regimes do not weigh: as published
        seen = logit_distances(perceptual.logits(affine(y, moves)), logits).mean()
        return (near + CLASSIFIER_WEIGHT * seen) / (1 + CLASSIFIER_WEIGHT)

    def _matching(
        self, features: FeatureMaps, x: Tensor, y: Tensor, labels: Labels, on: SphereNoise, share: float
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the terms that compare features, and the features that the denoisers learn from."""
        config, nothing = self.config, y.new_zeros(())
        terms = {name: nothing for name in ("score_matching", "frechet_features") if getattr(config, name)}
        strength = config.score.strength(on.progress) if self.score is not None else 0.0
        last = config.frechet_features > 0
        learns = self.score is not None and on.progress >= config.score.start
        if not learns and not last:
            return terms, {}
        assert on.moves is not None
        with torch.no_grad():
            real = features(shifted(x, on.moves[:, 0, :2], on.moves[:, 0, 2] > 0), final=last)
        with torch.set_grad_enabled(torch.is_grad_enabled() and (strength > 0 or last)):
            fake = features(shifted(y, on.moves[:, 1, :2], on.moves[:, 1, 2] > 0), final=last)
        if last:
            whole = self._frechet("frechet_features", real.pop(), fake.pop(), on, share)
            terms["frechet_features"] = whole
        if self.score is None or not learns:
            return terms, {}
        score = self.score
        with full_precision(y.device.type):
            if self._totals is None:
                score.observe([self._summed(name, each) for name, each in _moments(real, share).items()])
            real, fake = score.standardised(real), score.standardised(fake)
            if strength:
                terms["score_matching"] = strength * self._pulled(fake, labels, on, share)
        seen: dict[str, Tensor] = {}
        for layer, (ours, theirs) in enumerate(zip(real, fake, strict=True)):
            seen |= {f"real_features_{layer}": ours, f"fake_features_{layer}": theirs.detach()}
        return terms, seen

    def _pulled(self, fake: Sequence[Tensor], labels: Labels, on: SphereNoise, share: float) -> Tensor:
        """Return the term of distribution matching before its weight and its fading in."""
        assert self.score is not None and on.normal is not None
        score, ids = self.score, self._ids(labels)
        losses, rms = [], []
        for layer, each in enumerate(fake):
            kept = (None, None) if on.kept_score is None else on.kept_score[:, layer, :2].unbind(1)
            noise = self._feature_noise(layer, 0, on, each)
            # the true labels, also where the decoder's was dropped: as published
            pull = score.pull(layer, each, on.normal[:, layer, 0], noise, ids, kept)
            losses.append((on.share * pull_loss(each, pull.change)).mean())
            rms.append(pull.rms.mean())
        strengths = self._summed("pulls", share * torch.stack(rms))
        balance = score.weigh(strengths) if self._balance is None else self._balance
        return (balance * torch.stack(losses)).mean()

    def _ids(self, labels: Labels) -> Tensor | None:
        """Return the class ids that the denoisers are told."""
        return labels if isinstance(labels, Tensor) and self.network.num_classes else None

    def _feature_noise(self, layer: int, use: int, on: SphereNoise, like: Tensor) -> Tensor:
        """Return standard normal numbers of the shape of features, for each sample by its own seed."""
        assert on.seeds is not None
        drawn = torch.empty_like(like, requires_grad=False)
        if drawn.is_meta:
            return drawn
        own = torch.Generator(like.device)
        for row, seed in zip(drawn, on.seeds.tolist(), strict=True):
            row.normal_(generator=own.manual_seed(seed ^ (3 * layer + use)))
        return drawn

    def _frechet(self, name: str, real: Tensor | None, generated: Tensor, on: SphereNoise, share: float) -> Tensor:
        loss = cast(FrechetLoss, self.frechets[name])

        def total(what: str, local: Tensor) -> Tensor:
            return self._summed(what, local, factor=1 / share)

        with full_precision(generated.device.type):
            if on.progress < self.config.frechet.start:
                loss.gather(real, generated.detach(), on.weight, total)
                return generated.new_zeros(())
            found: Tensor = loss(real, upcast(generated), on.weight, total)
            return found

    def _summed(self, name: str, local: Tensor, factor: float = 1.0) -> Tensor:
        """Return the sum of a tensor over the parts of the global batch.

        Args:
            name: of the tensor.
            local: of the part at hand.
            factor: of its gradient, so that the mean over parts is that of the global loss.
        """
        if self._recorded is not None:
            known = self._recorded.get(name)
            self._recorded[name] = local.detach() if known is None else known + local.detach()
            return local  # nobody asks for what the sums are good for yet
        total = self._over_processes(local.detach()) if self._totals is None else self._totals[name]
        scaled = factor * local
        found: Tensor = scaled + (total - scaled).detach() if local.requires_grad else total
        return found

    def _over_processes(self, tensor: Tensor) -> Tensor:
        return self.world.mean(tensor) * self.world.size

    # what is beside the model -----------------------------------------------------------------------------------------

    @property
    def _coupled(self) -> bool:
        """The loss of a sample depends on the other samples."""
        return self.score is not None or len(self.frechets) > 0

    def begin_step(self, parts: Sequence[Callable[[], Part]]) -> None:
        """Put back what an attempt has left; of a batch in several parts, find the sums over all of them first."""
        if not self._coupled:
            return
        running = [] if self.score is None else self.score.running()
        if self._before is not None:
            for tensor, before in zip(running, self._before, strict=True):
                tensor.copy_(before)
        self._before = [tensor.clone() for tensor in running]
        self._totals = self._recorded = self._balance = None
        if len(parts) > 1:
            self._find_totals(parts)

    @torch.no_grad()
    def _find_totals(self, parts: Sequence[Callable[[], Part]]) -> None:
        """Find the sums over all parts by passes without gradients: of the real features, then of all else."""
        if self.score is not None and self.features is not None:
            moments: dict[str, Tensor] = {}
            for part in parts:
                inputs, _, drawn = part()
                if drawn.progress < self.config.score.start:
                    break
                moves = drawn.moves.to(inputs.device)
                real = self.features(shifted(to_unit(inputs), moves[:, 0, :2], moves[:, 0, 2] > 0))
                for name, each in _moments(real, len(inputs) / drawn.samples).items():
                    moments[name] = moments[name] + each if name in moments else each
            if moments:
                self.score.observe([self._over_processes(each) for each in moments.values()])
        self._totals, self._recorded = {}, {}
        self._balance = torch.ones(0 if self.score is None else len(self.score.shapes))
        for part in parts:
            inputs, labels, drawn = part()
            self._balance = self._balance.to(inputs.device)
            self.loss(inputs, labels, drawn)
        self._totals = {name: self._over_processes(each) for name, each in self._recorded.items()}
        self._recorded = None
        if self.score is not None and "pulls" in self._totals:
            self._balance = self.score.weigh(self._totals["pulls"])

    def end_step(
        self, parts: Sequence[Callable[[], Part]], observed: Sequence[Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Let the denoisers learn from the features of the step."""
        self._before = self._totals = self._balance = None
        for frechet in self.frechets.values():
            cast(FrechetLoss, frechet).commit()
        if self.score is None or self.optimizer is None:
            return {}
        device = self.score.count.device
        values = torch.zeros(2, device=device)
        samples = sum(len(seen["data"]) for seen in observed)
        rate = 0.0
        for part, seen in zip(parts, observed, strict=True):
            if "real_features_0" not in seen:
                continue
            _, labels, drawn = part()
            on = cast(SphereNoise, drawn).each(lambda tensor: tensor.to(device))
            rate = self.config.score.learning_rate(on.progress)
            share = len(seen["data"]) / samples
            with full_precision(device.type):
                both = self._denoising(labels, on, seen)
                (share * both.sum()).backward()
            values += share * both.detach()
        if rate:
            self.optimizer.step(rate)
        real, fake = self.world.mean(values).unbind()
        return {"denoiser_real": real, "denoiser_fake": fake}

    def _denoising(self, labels: Tensor | None, on: SphereNoise, seen: Mapping[str, Tensor]) -> Tensor:
        """Return the losses of the real and the fake denoisers, each summed over layers."""
        assert self.score is not None and on.normal is not None
        sums = []
        for use, real in ((1, True), (2, False)):
            losses = []
            for layer in range(len(self.score.shapes)):
                features = seen[f"{'real' if real else 'fake'}_features_{layer}"]
                kept = None if on.kept_score is None else on.kept_score[:, layer, 1 + use]
                noise = self._feature_noise(layer, use, on, features)
                each = self.score.denoising(
                    layer, features, on.normal[:, layer, use], noise, self._ids(labels), real=real, kept=kept
                )
                losses.append(each.mean() if real else (on.share * each).mean())
            sums.append(torch.stack(losses).sum())
        return torch.stack(sums)

    def state(self) -> dict[str, Tensor]:
        """Return the denoisers, their moments, and all running statistics."""
        assert self.beside is not None
        found = {f"network.{name}": tensor for name, tensor in self.beside.state_dict().items()}
        if self.optimizer is not None:
            found |= {f"moment.{name}": tensor for name, tensor in self.optimizer.state().items()}
        return found

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` returned.

        Raises:
            KeyError: something is missing.
        """
        assert self.beside is not None
        own = self.beside.state_dict()
        for name in own:
            if f"network.{name}" not in state:
                raise KeyError(name)
        self.beside.load_state_dict({name: state[f"network.{name}"] for name in own})
        if "frechet_judge" in self.frechets:
            cast(FrechetLoss, self.frechets["frechet_judge"]).fixed = True
        if self.optimizer is not None:
            moments = {name: tensor for name, tensor in state.items() if name.startswith("moment.")}
            self.optimizer.load_state({name.removeprefix("moment."): each for name, each in moments.items()})


def _read_reference(path: Path) -> tuple[Tensor, Tensor]:
    """Read mean (D,) and covariance (D, D) of features from a published reference file.

    Raises:
        ModelFileError: it is missing, broken, or holds something else.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            mean, covariance = (torch.from_numpy(arrays[name].astype(np.float64)) for name in ("mu", "sigma"))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ModelFileError(f"{path} is no reference with mu and sigma ({error}); give an .npz of FID") from error
    if covariance.shape != (len(mean), len(mean)):
        raise ModelFileError(f"{path}: mu and sigma are of other sizes; give an .npz of FID")
    return mean, covariance


def _moments(real: Sequence[Tensor], share: float) -> dict[str, Tensor]:
    """Return the share of a batch's moments that its part with these features makes, by name."""
    return {f"moments.{layer}": share * moments_of(upcast(each)) for layer, each in enumerate(real)}


@own_defaults()
def _kept(batch: int, shape: tuple[int, ...], share: float, generator: torch.Generator) -> Tensor:
    """Return factors (batch, *shape): in each column max(int(batch * (1 - share)), 1) samples have batch over their
    number, the others 0."""
    count = max(int(batch * (1 - share)), 1)
    order = torch.rand(math.prod(shape), batch, generator=generator).argsort(dim=1)
    factors = torch.zeros(math.prod(shape), batch).scatter_(1, order[:, :count], batch / count)
    return factors.T.reshape(batch, *shape).contiguous()


def logit_distances(logits: Tensor, reference: Tensor) -> Tensor:
    """Return 1 - cos (B,) of logits (B, K), each less its mean."""
    ours, theirs = (each - each.mean(dim=1, keepdim=True) for each in (logits, reference))
    return 1 - torch.cosine_similarity(ours, theirs, dim=1, eps=COSINE_EPS)
