"""The findings on originality as a part of the report, and the sheets of samples beside training images."""

from __future__ import annotations

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from spheregen.data import image_grid
from spheregen.evaluation.originality.compare import Matches
from spheregen.evaluation.originality.study import Originality, quantiles
from spheregen.evaluation.report.parts import Cell, Picture, Plot, Section, Series, Table

_TILE = 96
"""Pixels of an image on a sheet, at least about."""
_GROUPS = 3
"""Samples in a row of a sheet."""
_GAP, _LINE = 14, 14
_BINS = 60
_NAMES = {
    "score": "share explained",
    "pixel_distance": "distance in pixels (levels of 0..255)",
    "feature_distance": "distance in features",
}


def originality_section(found: Originality) -> Section:
    """Share of copies, nearness to the training set, and the most suspicious samples to look at."""
    real = int((found.held_out.score >= found.threshold).sum())
    copies = Table(
        title="Copies of training images",
        header=("", "samples", "held-out images"),
        rows=(
            ("images", len(found.samples), len(found.held_out)),
            ("flagged as copies", int(found.flagged.sum()), real),
            ("share", found.share, found.held_out_share),
            ("highest score", float(found.samples.score.max()), float(found.held_out.score.max())),
        ),
    )
    rows: list[tuple[Cell, ...]] = []
    for name, mine, others in found.measures():
        rows.append((_NAMES[name], "samples", *quantiles(mine).values()))
        rows.append((_NAMES[name], "held-out images", *quantiles(others).values()))
    nearness = Table(
        title="How near the training set comes: quantiles",
        header=("measure", "of", *quantiles(found.samples.score)),
        rows=tuple(rows),
    )
    shown = "sample, its match (mirrored where that fits), the nearest in pixels"
    if found.features is not None:
        shown += ", the nearest in features"
    return Section(
        key="originality",
        title="Originality",
        text=(
            f"Each sample was compared with its likeliest originals among {found.train_count} training images, found "
            f"by thumbnails{', pixels and features' if found.features is not None else ' and pixels'}. The score is "
            "the share of the steps in brightness from pixel to pixel that the original explains, mirrored or not, "
            "under the best shift, change of colours and softening: 1 is a copy.",
            f"Images of a score of {found.threshold:.3f} or more are flagged. Held-out real images, which nobody "
            "copied, are the yardstick: samples that are as far from the training set as these are new.",
        ),
        warnings=found.warnings(),
        tables=(copies, nearness),
        plots=tuple(_histogram(_NAMES[name], mine, others) for name, mine, others in found.measures()),
        pictures=(
            Picture(
                image=found.sheet,
                title="The most suspicious samples",
                caption=f"From the left: {shown}. Below: sample, score, match.",
            ),
            Picture(
                image=found.others,
                title="Samples evenly spread over all",
                caption=f"From the left: {shown}. Below: sample, score, match.",
            ),
        ),
    )


def sheet(samples: Tensor, train: Tensor, found: Matches, places: Tensor) -> Image.Image:
    """Samples at places (p,), each beside its match, the nearest in pixels and, if there, in features; scores below."""
    match = train[found.index[places]]
    match = torch.where(found.mirrored[places][:, None, None, None], match.flip(-1), match)
    columns = [samples[places], match, train[found.pixel_index[places]]]
    if found.feature_index is not None:
        columns.append(train[found.feature_index[places]])
    groups = torch.stack(columns, dim=1).cpu()
    scale = max(1, round(_TILE / groups.shape[-1]))
    tiles = [image_grid(group, columns=len(columns), scale=scale).convert("RGB") for group in groups]
    width, height = tiles[0].width + _GAP, tiles[0].height + _LINE
    across = min(_GROUPS, len(tiles))
    whole = Image.new("RGB", (across * width - _GAP, -(-len(tiles) // across) * height), "white")
    pen = ImageDraw.Draw(whole)
    for number, (tile, place) in enumerate(zip(tiles, places.tolist(), strict=True)):
        row, column = divmod(number, across)
        whole.paste(tile, (column * width, row * height))
        turned = ", mirrored" if found.mirrored[place] else ""
        text = f"{place}: {float(found.score[place]):.3f} of {int(found.index[place])}{turned}"
        pen.text((column * width + 2, row * height + tile.height), text, fill="black")
    return whole


def _histogram(name: str, samples: Tensor, held_out: Tensor) -> Plot:
    """Shares of the images in equal bins over both."""
    low, high = (float(edge(torch.cat([samples, held_out]))) for edge in (torch.min, torch.max))
    high = max(high, low + 1e-6)
    middles = tuple((low + (high - low) * (torch.arange(_BINS, dtype=torch.float64) + 0.5) / _BINS).tolist())
    series = []
    for title, values in (("samples", samples), ("held-out images", held_out)):
        bins = ((values.double() - low) / (high - low) * _BINS).long().clamp(0, _BINS - 1)
        shares = torch.bincount(bins, minlength=_BINS).double() / len(values)
        series.append(Series(name=title, x=middles, y=tuple(shares.tolist()), kind="step"))
    return Plot(title=name.capitalize(), x_label=name, y_label="share of images", series=tuple(series))
