"""One evaluation from names to a result: opens model, images, networks and references, and writes the report."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spheregen.data import ImageOptions, open_source
from spheregen.devices import choose_device
from spheregen.distributed import World, joined_world, local_device
from spheregen.errors import ConfigError, DataError
from spheregen.evaluation.curves import check_curves, usual_curves
from spheregen.evaluation.evaluate import (
    EvaluationOptions,
    Evaluator,
    evaluate,
    evaluate_images,
    make_references,
)
from spheregen.evaluation.features import load_extractor
from spheregen.evaluation.features.base import FeatureExtractor
from spheregen.evaluation.figures import check_metrics
from spheregen.evaluation.images import ImagesAsTheyAre, RealImages
from spheregen.evaluation.reference import Reference, load_reference
from spheregen.evaluation.report.page import render, write_report
from spheregen.evaluation.report.sections import report_sections
from spheregen.evaluation.studies import COPY_SAMPLES, MOST_TRAIN, STUDIES, run_studies
from spheregen.pipeline import Pipeline
from spheregen.progress import QuietReporter, Reporter

HELD_OUT = ("test", "val", "validation")
"""Splits that are taken for held-out images where none is named."""
WORK = "work"
"""The folder of a report that holds what was measured; it may be deleted."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be evaluated, by names."""

    model: str | None = None
    """A model folder, a bundled model or a Hub id; None: `images` are scored."""
    images: str | None = None
    """Samples that lie in a folder or archive, instead of a model's."""
    data: str | None = None
    """Real images, as for training; None: `references` hold what is needed."""
    split: str = "train"
    """The part of the data to compare with."""
    held_out: str | None = None
    """The part that the model never saw; None: test or val, where the data has one."""
    features: tuple[str, ...] = ("own",)
    """Networks, see `features.load_extractor`; `NAME=FILE` gives the weights."""
    references: tuple[str, ...] = ()
    """Files of `save_reference`, or published .npz; `NETWORK=FILE` says of which network."""
    options: EvaluationOptions = field(default_factory=EvaluationOptions)
    """Curves left empty are the usual ones in a report."""
    studies: tuple[str, ...] = STUDIES
    """Of the report."""
    report: Path | None = None
    """Where the page goes; None: only the figures are wanted."""
    workers: int = 0
    """Processes that decode images."""
    batch_size: int | None = None
    """Images in one pass through the model."""
    device: str = "auto"


def run(request: Request, *, reporter: Reporter | None = None) -> dict[str, Any] | None:
    """Evaluate; under `torchrun` all processes share the work.

    Returns:
        The result, plain JSON values; None on all processes but the first.

    Raises:
        SphereGenError: bad input of any kind.
    """
    if (request.model is None) == (request.images is None):
        raise ConfigError("name a model (a folder, a bundled model or a Hub id) or samples by --images, one of the two")
    if request.images is not None and request.report is not None:
        raise ConfigError("the studies of a report need a model; leave --report out to score images")
    with joined_world(request.device) as world, _work_folder(request.report, world) as work:
        reporter = reporter if reporter is not None and world.is_first else QuietReporter()
        result = _run(request, work, world, reporter)
        return result if world.is_first else None


def open_networks(features: Sequence[str], device: str, world: World | None = None) -> dict[str, FeatureExtractor]:
    """Feature networks by name.

    Raises:
        ConfigError: an unknown network, or one that is named twice.
    """
    place = choose_device(local_device(device, world or World()))
    found: dict[str, FeatureExtractor] = {}
    for name in features:
        extractor = load_extractor(name, device=place)
        if extractor.info.name in found:
            raise ConfigError(f"the feature network {extractor.info.name} is named twice; name each once")
        found[extractor.info.name] = extractor
    return found


def open_references(files: Sequence[str], networks: Sequence[str]) -> dict[str, Reference]:
    """Reference files by network: as the name in front says, as the file says, else Inception.

    Raises:
        ModelFileError: a missing, broken or foreign file.
        ConfigError: a reference of a network that is not used, or two of one.
    """
    found: dict[str, Reference] = {}
    for text in files:
        name, equals, file = text.partition("=")
        reference = load_reference(file if equals else text)
        said = "inception" if reference.info is None else reference.info.name
        name = name if equals else said
        if name not in networks:
            raise ConfigError(
                f"{file or text} is a reference of the network {name}, which is not used; add it to --features "
                f"({', '.join(networks)})"
            )
        if name in found:
            raise ConfigError(f"there are two references of the network {name}; give one")
        found[name] = reference
    return found


def _run(request: Request, work: Path, world: World, reporter: Reporter) -> dict[str, Any]:
    extractors = open_networks(request.features, request.device, world)
    given = open_references(request.references, list(extractors))
    if request.images is not None:
        return _run_images(request, extractors, given, work, world, reporter)
    assert request.model is not None
    check_metrics(request.options.metrics, [each.info for each in extractors.values()], request.options.count)
    pipe = Pipeline.from_pretrained(
        request.model,
        device=local_device(request.device, world),
        batch_size=request.batch_size,
        progress=False,
        quiet=True,
    )
    studies = request.studies if request.report is not None else ()
    options = dataclasses.replace(request.options, thumbnails=COPY_SAMPLES if "originality" in studies else 0)
    if "curves" not in studies:
        options = dataclasses.replace(options, curves=())
    elif not options.curves:
        options = dataclasses.replace(options, curves=tuple(usual_curves(pipe, options.generation)))
    check_curves(pipe, options.generation, options.curves)
    geometry = pipe.image_options
    for reference in given.values():
        if reference.data.get("fit", geometry.fit) != geometry.fit:
            raise ConfigError(
                f"{reference.source} is of images brought to size by {reference.data['fit']}, the model's were by "
                f"{geometry.fit}; make it again with `spheregen stats --fit {geometry.fit}`"
            )
    name = request.data or _known_data(pipe, given, extractors)
    data = None if name is None else _real(name, request.split, geometry, request.workers, pipe.info.class_names)
    held_out = None if name is None else _held_out(request, name, geometry, pipe.info.class_names)
    references, train = make_references(
        data,
        extractors,
        given,
        work,
        thumbnails=MOST_TRAIN if "originality" in studies else 0,
        world=world,
        reporter=reporter,
    )
    evaluator = Evaluator(extractors, references, work, world, reporter, pipe.device)
    result, scores = evaluate(pipe, options, evaluator)
    if data is not None:
        result["data"] = data.describe()
    if request.report is None:
        return result
    sections = run_studies(pipe, options, evaluator, scores, result, studies=studies, train=train, held_out=held_out)
    if world.is_first:
        page = render(_title(pipe), _subtitle(result), report_sections(result, sections), result)
        write_report(request.report, page, result)
    return result


def _run_images(
    request: Request,
    extractors: dict[str, FeatureExtractor],
    given: dict[str, Reference],
    work: Path,
    world: World,
    reporter: Reporter,
) -> dict[str, Any]:
    assert request.images is not None
    samples = ImagesAsTheyAre(open_source(request.images, split="all"))
    check_metrics(request.options.metrics, [each.info for each in extractors.values()], len(samples))
    data = None
    if request.data is not None:
        geometry = ImageOptions(image_size=samples.shape[1], channels=samples.shape[0])
        data = _real(request.data, request.split, geometry, request.workers)
    references, _ = make_references(data, extractors, given, work, world=world, reporter=reporter)
    evaluator = Evaluator(extractors, references, work, world, reporter)
    result, _ = evaluate_images(samples, evaluator, request.options.metrics)
    return result


def _known_data(pipe: Pipeline, given: dict[str, Reference], extractors: dict[str, FeatureExtractor]) -> str | None:
    """The data of a model that was trained on what is embedded here, where it is needed."""
    if all(name in given for name in extractors):
        return None
    return "digits" if pipe.info.training.get("data") == "digits" else None


def _real(name: str, split: str, geometry: ImageOptions, workers: int, class_names: tuple[str, ...] = ()) -> RealImages:
    """The images of a split; their classes are numbered as the model's are, where these have names."""
    source = open_source(name, split=split)
    if class_names and source.class_names and set(source.class_names) <= set(class_names):
        source = open_source(name, split=split, class_names=class_names)
    return RealImages(source, geometry, workers=workers)


def _held_out(request: Request, name: str, geometry: ImageOptions, class_names: tuple[str, ...]) -> RealImages | None:
    if request.held_out is not None:
        if request.held_out == request.split:
            raise ConfigError(f"the split {request.split!r} cannot be held out: it is what samples are compared with")
        return _real(name, request.held_out, geometry, request.workers, class_names)
    for split in HELD_OUT:
        with contextlib.suppress(DataError):
            if split != request.split and request.split != "all":
                return _real(name, split, geometry, request.workers, class_names)
    return None


@contextlib.contextmanager
def _work_folder(report: Path | None, world: World) -> Iterator[Path]:
    """Where features are stored: in the report's folder, to continue there, or for this call alone."""
    if report is not None:
        yield report / WORK
        return
    temporary = tempfile.TemporaryDirectory(prefix="spheregen-") if world.is_first else None
    try:
        yield Path(world.gather_objects(None if temporary is None else temporary.name)[0])
    finally:
        if temporary is not None:
            temporary.cleanup()


def _title(pipe: Pipeline) -> str:
    return f"Evaluation of {Path(pipe.name).name or pipe.name}"


def _subtitle(result: dict[str, Any]) -> str:
    model = result["model"]
    channels, size, _ = model["image_shape"]
    kind = "grey" if channels == 1 else "colour"
    return f"{size} px, {kind}, {model['params'] / 1e6:.2f} M parameters, weights {model['fingerprint']}"
