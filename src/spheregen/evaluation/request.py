"""A request for an evaluation by names: opens model, images, extractors and references, and writes the report."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spheregen.data import ImageOptions
from spheregen.devices import choose_device, own_defaults
from spheregen.distributed import World, joined_world, local_device
from spheregen.errors import ConfigError
from spheregen.evaluation.classifier import CLASSIFIER, has_classes, make_classifier
from spheregen.evaluation.curves import check_curves, usual_curves
from spheregen.evaluation.evaluator import Evaluator, evaluate, evaluate_images, make_references
from spheregen.evaluation.images import GivenImages, RealImages, find_held_out, open_real, open_sets, prompted_by
from spheregen.evaluation.protocol import EvaluationOptions, check_metrics
from spheregen.evaluation.reference import load_references
from spheregen.evaluation.report.page import check_report, render, write_report
from spheregen.evaluation.report.sections import report_sections
from spheregen.evaluation.scorers import LetterScorer
from spheregen.evaluation.studies import COPY_SAMPLES, MOST_TRAIN, STUDIES, run_studies
from spheregen.evaluation.texts import letter_figures, text_figures
from spheregen.lock import locked_folder
from spheregen.measure.features import FeatureExtractor, load_extractors
from spheregen.measure.features.transformers import FAMILIES
from spheregen.networks.text import TextEncoderConfig, open_text_encoder
from spheregen.pipeline import Pipeline
from spheregen.progress import QuietReporter, Reporter

WORK = "work"
"""The folder of a report that holds what was measured; it may be deleted."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """An evaluation by names."""

    model: str | None = None
    """A model folder, a bundled model or a Hub id; None: `images` are scored."""
    images: str | None = None
    """Samples that lie in a folder or archive, instead of a model's."""
    data: str | None = None
    """Real images, as for training; None: `references` hold what is needed."""
    split: str = "train"
    """The part of the data to compare with, and of `images`; what has no parts is taken whole."""
    image_size: int | None = None
    """Side in pixels that `images` are brought to; None: that of most of them."""
    held_out: str | None = None
    """The part that the model never saw; None: test or val, where the data has one."""
    features: tuple[str, ...] | None = None
    """Feature extractors, see `measure.features.load_extractor`; `NAME=FILE` gives the weights. None: `own`, and with
    real images of classes a `classifier` that learns from them."""
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


@own_defaults()
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
    if request.images is None and request.image_size is not None:
        raise ConfigError("the model decides the size; leave --image-size out, it is for --images")
    if request.report is not None:
        check_report()
    with joined_world(request.device) as world, _work_folder(request.report, world) as work:
        reporter = reporter if reporter is not None and world.is_first else QuietReporter()
        result = _run(request, work, world, reporter)
        return result if world.is_first else None


def _run(request: Request, work: Path, world: World, reporter: Reporter) -> dict[str, Any]:
    device = choose_device(local_device(request.device, world))
    extractors = load_extractors([name for name in request.features or ("own",) if name != CLASSIFIER], device)
    classified = request.features is None or CLASSIFIER in request.features
    if CLASSIFIER in (request.features or ()) and request.data is None:
        raise ConfigError("the network classifier learns from real images; name them by --data, or leave it out")
    given = load_references(request.references, [*extractors, *([CLASSIFIER] if classified else [])])
    infos = [each.info for each in extractors.values()]
    if request.images is not None:
        sets = [each for each in (request.images, request.data) if each is not None]
        source, *others = open_sets(sets, request.split)
        real = others[0] if others else None
        told = {each.data["channels"] for each in given.values() if "channels" in each.data}
        samples = GivenImages(
            source,
            like=real,
            image_size=request.image_size,
            channels=min(told, default=None),
            workers=request.workers,
        )
        check_metrics(request.options.metrics, infos, len(samples), classified=classified)
        data = None if real is None else RealImages(real, samples.options, workers=request.workers)
        if classified and data is not None and (request.features or has_classes(data)):
            extractors[CLASSIFIER] = make_classifier(data, work, device=device, world=world, reporter=reporter)
            if source.class_names != data.source.class_names:
                samples.labels = None  # its numbers mean others
        references, _ = make_references(data, extractors, given, work, world=world, reporter=reporter)
        evaluator = Evaluator(extractors, references, work, world, reporter)
        return evaluate_images(samples, evaluator, request.options.metrics)
    assert request.model is not None
    check_metrics(request.options.metrics, infos, request.options.count, classified=classified)
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
                f"{geometry.fit}; make it again with `spheregen stats --set fit={geometry.fit}`"
            )
    if (
        (name := request.data) is None
        and pipe.info.training.get("data") == "digits"
        and any(each not in given for each in extractors)
    ):
        name = "digits"  # which is embedded here
    names, data, held_out = pipe.info.class_names, None, None
    if name is not None:
        data = open_real(name, request.split, geometry, workers=request.workers, class_names=names)
        held_out = _held_out(request, name, geometry, names)
        prompted_by(pipe, data)
    if classified and data is not None and (request.features or has_classes(data, names)):
        extractors[CLASSIFIER] = make_classifier(
            data, work, held_out=held_out, class_names=names, device=device, world=world, reporter=reporter
        )
    kept = MOST_TRAIN if "originality" in studies else 0
    references, train = make_references(data, extractors, given, work, thumbnails=kept, world=world, reporter=reporter)
    evaluator = Evaluator(extractors, references, work, world, reporter, pipe.device)
    result, scores = evaluate(pipe, options, evaluator)
    if data is not None:
        result["data"] = data.describe()
    if data is not None and pipe.model.text_width and world.is_first:
        result["texts"] = _texts(pipe, data, held_out, extractors, request)
        shown = (f"{name} {value:.3g}" for name, value in result["texts"].items() if isinstance(value, float))
        result["line"] = f"{result['line']}; texts: {', '.join(shown)}"
    if request.report is None:
        return result
    sections = run_studies(pipe, options, evaluator, scores, result, studies=studies, train=train, held_out=held_out)
    if world.is_first:
        title = f"Evaluation of {Path(pipe.name).name or pipe.name}"
        size, params = result["model"]["image_shape"][1], result["model"]["params"] / 1e6
        subtitle = f"{size} px, {params:.2f} M parameters, weights {result['model']['fingerprint']}"
        page = render(title, subtitle, report_sections(result, sections), result)
        write_report(request.report, page, result)
    return result


def _texts(
    pipe: Pipeline,
    data: RealImages,
    held_out: RealImages | None,
    extractors: Mapping[str, FeatureExtractor],
    request: Request,
) -> dict[str, Any]:
    """Return how well samples follow texts; the CLIP score where CLIP is one of the feature networks."""
    clip = next((name for name in request.features or () if name.partition("=")[0] == "clip"), None)
    source = None if clip is None else clip.partition("=")[2] or FAMILIES["clip"].repo
    tower = None if source is None else open_text_encoder(TextEncoderConfig(name=source, pooling="projected"))
    options, seed = request.options.generation, request.options.seed
    found = text_figures(pipe, data, held_out, extractors, options=options, seed=seed, clip=tower)
    if data.source.name == "letters" and pipe.model.image_shape == (1, 32, 32):
        found |= letter_figures(pipe, LetterScorer(), options=options, seed=seed)
    return found


def _held_out(request: Request, name: str, geometry: ImageOptions, class_names: Sequence[str]) -> RealImages | None:
    if request.held_out == request.split:
        raise ConfigError(f"the split {request.split!r} cannot be held out: it is what samples are compared with")
    if request.held_out is not None:
        return open_real(name, request.held_out, geometry, workers=request.workers, class_names=class_names)
    return find_held_out(name, request.split, geometry, class_names, workers=request.workers)


@contextlib.contextmanager
def _work_folder(report: Path | None, world: World) -> Iterator[Path]:
    """Yield where features are stored: in the report's folder, to continue there, or for this call alone."""
    if report is not None:
        with locked_folder(report, world):
            yield report / WORK
        return
    made = tempfile.mkdtemp(prefix="spheregen-") if world.is_first else ""
    folder, everybody_left = Path(world.gather_objects(made)[0]), world.size == 1
    if world.is_first:
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    try:
        yield folder
        world.wait_for_all()
        everybody_left = True
    finally:  # after an error others may still read here, and may never come: then it goes when this process ends
        if everybody_left and world.is_first:
            shutil.rmtree(folder, ignore_errors=True)
