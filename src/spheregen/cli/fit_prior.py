"""`spheregen fit-prior`: a prior where the codes of a data set are, beside a model's weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from spheregen.cli import options as cli
from spheregen.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


def fit_prior(
    model: cli.Model,
    data: Annotated[str, Option(help=f"Images, as the model was trained on: {cli.SOURCE_HELP}")],
    split: cli.Split = "train",
    limit: cli.Limit = None,
) -> None:
    """Fit a prior to the codes of images, which `sample --set prior=fitted` and all that samples can draw from.

    Training does so by itself at its end. The weights stay as they are; a prior that is there is replaced. Several
    processes (`torchrun`) share the work and find the same prior as one.

    Examples:
        spheregen fit-prior runs/mine --data photos/
        spheregen fit-prior runs/mine --data photos/ --split all --limit 10000
    """
    from spheregen.batching import images_at_once
    from spheregen.data.images import to_model_range
    from spheregen.data.source import notes
    from spheregen.distributed import joined_world, local_device
    from spheregen.evaluation.images import captions_of, open_real
    from spheregen.folders.model_folder import load_model, save_prior
    from spheregen.folders.summary import CONFIG
    from spheregen.lock import locked_folder
    from spheregen.pipeline import Pipeline
    from spheregen.training.codes import fitted_to, most_codes

    folder = Path(model)
    if not (folder / CONFIG).is_file():
        raise ConfigError(
            f"a prior is written into the folder of a model, and {model} is none here; save a copy of a bundled model "
            "or of one of the Hub by Pipeline.save_pretrained, and name its folder"
        )
    with joined_world(cli.everywhere.device) as world, locked_folder(folder, world):
        loaded = load_model(folder, prior=False)
        pipe = Pipeline(loaded.model, loaded.info, device=local_device(cli.everywhere.device, world))
        images = open_real(data, split, pipe.image_options, class_names=pipe.info.class_names)
        names, known = images.source.class_names, pipe.info.class_names
        if pipe.classes.count and (images.labels is None or (known and names and set(names) - set(known))):
            raise ConfigError(
                f"{data} has no classes that this model knows ({', '.join(known[:5])} ...); give images as it was "
                "trained on"
            )
        most = min(limit or len(images), most_codes(pipe.model))
        if most < len(images):
            images = images.thinned(most)
        labels = pipe.text_labels(captions_of(pipe, images)) if pipe.model.text_width else images.labels
        size = images_at_once(pipe.model, pipe.device)
        parts = [slice(first, first + size) for first in range(0, len(images), size)][world.rank :: world.size]

        def inputs() -> Iterator[tuple[Tensor, Tensor | None]]:
            for part, batch in zip(parts, images.stream(parts), strict=True):
                yield to_model_range(batch), None if labels is None else labels[part]

        shown = cli.watch(inputs(), len(images), lambda batch: len(batch[0])) if world.is_first else inputs()
        prior = fitted_to(pipe.model, shown, world=world)
        about = {"data": f"{images.source.name}/{images.source.split}", "images": len(images)}
        if world.is_first:
            save_prior(folder, prior, about)
    if not world.is_first:
        return
    for line in notes(images.source):
        cli.warn(line)
    found = {**about, "model": model, "directions": prior.basis.shape[1], "numbers": len(prior.centre)}
    cli.finish(
        found,
        "a prior of {directions} of {numbers} directions, of {images} images of {data}, is in {model}; sample it with: "
        "spheregen sample {model} --set prior=fitted".format(**found),
    )
