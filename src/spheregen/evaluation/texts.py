"""How well samples follow their texts: retrieval, classes, CLIP score, and the attributes of letters.

Retrieval asks, of a sample and 32 captions, one of them its own, which is nearest in a joint space of images and texts.
The space is fitted to real images and their captions: a ridge regression from image features to the vectors of the
model's own text encoder. Chance is 1/32; real images that were held out are the most that one can hope for.

Sources: Hessel et al. 2021 (arXiv 2104.08718), CLIP score; Xu et al. 2018 (arXiv 1711.10485), retrieval of captions.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from spheregen.data import to_uint8
from spheregen.data.lettering import LETTERS, SERIFS, SLANTS, WEIGHTS, caption, is_held_out, slants, weights
from spheregen.errors import ConfigError
from spheregen.evaluation.images import RealImages, captions_of, take
from spheregen.evaluation.scorers import LetterScorer
from spheregen.measure.features import FEATURE_BATCH, FeatureExtractor
from spheregen.networks.text import TextEncoder

if TYPE_CHECKING:
    from spheregen.pipeline import GenerationOptions, Pipeline

AMONG = 32
"""Captions of which one is right."""
MOST_FITTED, MOST_TESTED = 20_000, 1000
"""Images that the joint space is fitted to, and images, real and made, that are tested."""
RIDGE = 1e-2
"""Of the regression, by the mean square of a feature."""


def text_figures(
    pipe: Pipeline,
    data: RealImages,
    held_out: RealImages | None,
    extractors: Mapping[str, FeatureExtractor],
    *,
    options: GenerationOptions | None = None,
    seed: int = 0,
    clip: TextEncoder | None = None,
) -> dict[str, Any]:
    """Return how well samples under the captions of held-out images follow them, and how well those images do.

    Args:
        pipe: a model that follows texts.
        data: real images with captions; without `held_out` a tenth of them is not used to fit.
        held_out: real images that the model never saw.
        extractors: image features by name; `own` or the first fits the joint space, `classifier` sees classes.
        options, seed: of the samples.
        clip: a text tower with its projection, of the network that `extractors` have as `clip`.

    Raises:
        DataError: there are no captions.
    """
    some = data.thinned(MOST_FITTED)
    images, texts = take(some, len(some)), captions_of(pipe, some)
    if held_out is None:
        last = np.arange(len(images)) % 10 == 9
        unseen, asked, labels = images[last], list(itertools.compress(texts, last)), _some(some.labels, last)
        images, texts = images[~last], list(itertools.compress(texts, ~last))
    else:
        some = held_out.thinned(MOST_TESTED)
        unseen, asked, labels = take(some, len(some)), captions_of(pipe, some), _some(some.labels, None)
    told = torch.tensor([bool(text) for text in asked])
    unseen, asked = unseen[told][:MOST_TESTED], [text for text in asked if text][:MOST_TESTED]
    if len(set(asked)) < 2 or not any(texts):
        raise ConfigError(f"{data.source.name} has too few captions to compare: 2 different ones at least")
    made = to_uint8(
        torch.cat([part.tensor for part in pipe.stream(range(seed, seed + len(asked)), labels=asked, options=options)])
    )
    name = "own" if "own" in extractors else next(iter(extractors))
    joint = _joint_space(extractors[name], images, texts, pipe.text_encoder)
    found: dict[str, Any] = {"samples": len(asked), "captions": len(set(asked)), "features": name}
    for kind, of in (("", made), ("real_", unseen)):
        found[f"{kind}retrieval"] = retrieval_accuracy(joint(of), pipe.text_encoder.encode(asked), asked, seed)
        if "classifier" in extractors and labels is not None and extractors["classifier"].info.accuracy is not None:
            truth = labels[told][:MOST_TESTED]
            found[f"{kind}class_accuracy"] = float((_seen(extractors["classifier"], of) == truth).float().mean())
        if clip is not None:
            found[f"{kind}clip_score"] = clip_score(_features(extractors["clip"], of), clip.encode(asked))
    return found


def retrieval_accuracy(images: Tensor, vectors: Tensor, texts: Sequence[str], seed: int = 0) -> float:
    """Return the share of images whose own text is the nearest of `AMONG`, by the cosine; ties count by halves.

    Args:
        images: (n, D) in the space of the texts.
        vectors: (n, D) of their texts.
        texts: (n) themselves: others that are equal are no wrong answers.
        seed: of the draw of the others; of fewer different texts all take part.
    """
    different = list(dict.fromkeys(texts))
    places = torch.tensor([different.index(text) for text in texts])
    rows = torch.stack([vectors[texts.index(text)] for text in different])
    cosines = functional.normalize(images.float(), dim=1) @ functional.normalize(rows.float(), dim=1).T
    generator = torch.Generator().manual_seed(seed)
    right = 0.0
    for row, place in zip(cosines, places.tolist(), strict=True):
        others = torch.randperm(len(different) - 1, generator=generator)[: AMONG - 1]
        others = others + (others >= place)
        best = row[others].max()
        right += 1.0 if row[place] > best else 0.5 if row[place] == best else 0.0
    return right / len(texts)


def clip_score(images: Tensor, texts: Tensor) -> float:
    """Return 100 times the mean cosine of images and their texts (n, D) in CLIP's joint space, negative ones as 0."""
    return float(100 * torch.cosine_similarity(images.float(), texts.float(), dim=1).clamp_min(0).mean())


def letter_figures(
    pipe: Pipeline, scorer: LetterScorer, *, count: int = 1000, seed: int = 0, options: GenerationOptions | None = None
) -> dict[str, float]:
    """Return how well samples show letter, weight and slant of combinations that no caption ever told.

    Returns:
        `letter_accuracy`: the share in which a classifier of real letters sees the one that was asked for.
        `weight_order`, `slant_order`: of pairs of one letter that differ in what was asked for, the share whose mean
        ink, or whose shear, differs as asked.
    """
    combinations = [
        (letter, weight, slant, serif)
        for letter, weight, slant, serif in itertools.product(
            range(len(LETTERS)), range(len(WEIGHTS)), range(len(SLANTS)), range(len(SERIFS))
        )
        if is_held_out(letter, weight, slant, serif)
    ]
    asked = [combinations[i % len(combinations)] for i in range(count)]
    prompts = [caption(*each) for each in asked]
    parts = pipe.stream(range(seed, seed + count), labels=prompts, options=options)
    images = torch.cat([part.tensor for part in parts])
    letters = torch.tensor([letter for letter, *_ in asked])
    ink = images[:, 0].numpy()
    return {
        "letter_accuracy": scorer.figures(images, letters)["accuracy"],
        "weight_order": _order(weights(ink), letters.numpy(), np.array([each[1] for each in asked])),
        "slant_order": _order(slants(ink), letters.numpy(), np.array([each[2] for each in asked])),
    }


def _order(measured: Any, letters: Any, asked: Any) -> float:
    """Return the share of pairs of one letter with other wishes whose measure differs as the wishes do."""
    right = pairs = 0
    for letter in np.unique(letters):
        which = letters == letter
        wish = np.sign(asked[which][:, None] - asked[which][None])
        is_so = np.sign(measured[which][:, None] - measured[which][None])
        right, pairs = right + int(((wish == is_so) & (wish > 0)).sum()), pairs + int((wish > 0).sum())
    return right / max(1, pairs)


def _some(labels: Tensor | None, which: Any) -> Tensor | None:
    if labels is None:
        return None
    found = torch.as_tensor(labels)
    return found if which is None else found[torch.from_numpy(which)]


def _joint_space(
    extractor: FeatureExtractor, images: Tensor, texts: Sequence[str], encoder: TextEncoder
) -> Callable[[Tensor], Tensor]:
    """Return what brings 8-bit images into the space of texts, fitted to images and their captions."""
    told = torch.tensor([bool(text) for text in texts])
    x, y = _features(extractor, images[told]).double(), encoder.encode([text for text in texts if text]).double()
    centre, middle = x.mean(0), y.mean(0)
    x, y = x - centre, y - middle
    gram = x.T @ x
    ridge = RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    weights = torch.linalg.solve(gram + ridge, x.T @ y)
    return lambda some: ((_features(extractor, some).double() - centre) @ weights + middle).float()


def _features(extractor: FeatureExtractor, images: Tensor) -> Tensor:
    return torch.cat([extractor(part).features.cpu() for part in images.split(FEATURE_BATCH)])


def _seen(classifier: FeatureExtractor, images: Tensor) -> Tensor:
    logits = [classifier(part).logits for part in images.split(FEATURE_BATCH)]
    return torch.cat([each.argmax(1).cpu() for each in logits if each is not None])
