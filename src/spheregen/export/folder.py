"""Exported folders: graphs, manifest and what goes with them, written whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

import spheregen
from spheregen.errors import ConfigError, ModelFileError, SphereGenError, did_you_mean
from spheregen.export.graphs import EXAMPLES, Graph, graphs_of
from spheregen.export.manifest import FORMAT, MANIFEST, read_manifest
from spheregen.export.page import add_page, find_runtime
from spheregen.export.runner import Runner
from spheregen.export.trace import OPSET, as_onnx, traced
from spheregen.export.weights import Precision, compress
from spheregen.external import import_package
from spheregen.networks.text import NGRAMS
from spheregen.pipeline import Pipeline

Target = Literal["onnx", "torch", "web"]
TARGETS: Mapping[str, str] = {
    "onnx": "graphs for onnxruntime and other runtimes, with a runner in numpy: spheregen.export.Runner",
    "torch": "programs of torch.export, loadable without this library",
    "web": "a static page in the browser, with its runtime",
}
PRECISIONS = ("float32", "float16", "int8")
_WIDE = ("undraw",)  # graphs whose numbers are of all sizes stay float32
_PRIOR = ("draw",)  # those that become float16 at most
PARITY_SEEDS = 4
"""Images that are made by both at export."""
WORST: Mapping[str, float] = {"float32": 60.0, "float16": 30.0, "int8": 20.0}
"""dB: an export whose images differ by more is refused."""


@dataclass(frozen=True)
class Exported:
    """A folder that was written."""

    folder: Path
    manifest: Mapping[str, Any]
    size: int
    """Bytes of all its files."""
    seconds: float


def export_model(
    pipe: Pipeline,
    out: str | Path,
    to: Target = "onnx",
    *,
    precision: Precision | None = None,
    runtime: str | Path | None = None,
    title: str | None = None,
    overwrite: bool = False,
) -> Exported:
    """Export a model, check that it makes the images that `Pipeline` makes, and write it as a folder.

    The folder is replaced as a whole if an export made it; other files in it stay.

    Args:
        pipe: of a generator; its network is traced on the CPU in float32, whatever it is in here.
        out: the folder.
        to: one of `TARGETS`.
        precision: of the weights: float32, float16 or int8; by default float32, and int8 of a page. torch: float32.
        runtime: of a page, the folder of the npm package onnxruntime-web; by default the one in node_modules here or
            above.
        title: of a page; by default the pipeline's name.
        overwrite: replace files of the same names that no export made.

    Raises:
        ConfigError: an unknown target or precision, or files in the folder that are not ours.
        SphereGenError: a package is missing, the folder cannot be written, or the exported images differ.
    """
    for name, value, known in (("--to", to, TARGETS), ("precision", precision or "float32", PRECISIONS)):
        if value not in known:
            raise ConfigError(f"unknown {name} {value!r}{did_you_mean(str(value), known)}; use {', '.join(known)}")
    if to == "torch" and precision not in (None, "float32"):
        raise ConfigError("programs of torch are float32; leave precision out, or take --to onnx")
    if runtime is not None and to != "web":
        raise ConfigError("a runtime is part of a page; leave it out, or take --to web")
    weights: Precision = precision or ("int8" if to == "web" else "float32")
    found = find_runtime(runtime) if to == "web" else None
    folder, began = Path(out), time.perf_counter()
    _check_folder(folder, overwrite)
    for package in ("onnx", "onnxscript", "onnxruntime") if to != "torch" else ():  # complains before any work is done
        import_package(package, "onnx", "exporting to ONNX")
    with _beside(folder) as made:
        manifest = manifest_of(pipe, title or Path(pipe.name).name or "model", weights if to != "torch" else "float32")
        model = Pipeline(pipe.model, pipe.info, device="cpu", name=pipe.name, progress=False)
        before = pipe.device, pipe.dtype
        model.to("cpu", dtype="float32")
        try:
            graphs = graphs_of(model.model)
            write = _write_torch if to == "torch" else _write_onnx
            for name, graph in graphs.items():
                manifest["graphs"][name] = write(made, name, graph, weights)
            (made / MANIFEST).write_text(_json(manifest), encoding="utf-8")
            manifest["parity"] = _parity_torch(made, graphs) if to == "torch" else _parity(made, model)
        finally:
            pipe.to(*before)
        (made / MANIFEST).write_text(_json(manifest), encoding="utf-8")
        if found is not None:
            add_page(made, manifest, found)
        (made / "README.md").write_text(_readme(manifest, to), encoding="utf-8")
        manifest["files"] = sorted(path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file())
        (made / MANIFEST).write_text(_json(manifest), encoding="utf-8")
        _move(made, folder, manifest["files"], overwrite)
    size = sum((folder / name).stat().st_size for name in manifest["files"])
    return Exported(folder, manifest, size, time.perf_counter() - began)


# graphs ---------------------------------------------------------------------------------------------------------------


def _write_onnx(folder: Path, name: str, graph: Graph, precision: Precision) -> dict[str, Any]:
    model = as_onnx(graph)
    own: Precision = "float32" if name in _WIDE else "float16" if name in _PRIOR and precision == "int8" else precision
    compress(model, own)
    data = model.SerializeToString()
    path = folder / f"{name}.onnx"
    path.write_bytes(data)
    inputs = {each.name for each in model.graph.input}
    return {**_file(path), "precision": own, **_shapes(graph, inputs)}


def _write_torch(folder: Path, name: str, graph: Graph, precision: Precision) -> dict[str, Any]:
    path = folder / f"{name}.pt2"
    torch.export.save(traced(graph), path)
    return {**_file(path), "precision": precision, **_shapes(graph, set(graph.inputs))}


def _file(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return {"file": path.name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _shapes(graph: Graph, names: set[str]) -> dict[str, Any]:
    batch = {name: ["batch" if len(each) == EXAMPLES else 1, *each.shape[1:]] for name, each in graph.inputs.items()}
    return {"inputs": {name: shape for name, shape in batch.items() if name in names}, "outputs": list(graph.outputs)}


# what is told ---------------------------------------------------------------------------------------------------------


def manifest_of(pipe: Pipeline, title: str, precision: str) -> dict[str, Any]:
    """Return the manifest of a model, yet without its graphs."""
    model, info, options = pipe.model, pipe.info, pipe.image_options
    fitted = model.fitted
    refiner = None
    if model.refiner is not None:
        refiner = {"rho": model.config.rho, "guided": model.config.label_width > 0}
    sampling = {name: value for name, value in pipe.settings().items() if not callable(value)}
    if refiner is not None:  # None: it goes with the guidance
        sampling["refinement_guidance"] = info.sampling.get("refinement_guidance")
    return {
        "format": FORMAT,
        "made_by": f"spheregen export {spheregen.__version__}",
        "title": title,
        "fingerprint": pipe.fingerprint,
        "precision": precision,
        "opset": OPSET,
        "image_shape": list(model.image_shape),
        "latent_shape": list(model.latent_shape),
        "image_range": [-1, 1],
        "num_classes": model.num_classes,
        "class_names": list(info.class_names),
        "text": dict(info.text) or None,
        "predicts": "images" if model.predicts_images else "latents",
        "latent_space": model.prior.name,
        "guidance_law": model.guidance_law,
        "guidance_places": list(model.guidance_places),
        "unguided": model.unguided,
        "alpha_max": model.alpha_max,
        "max_angle": model.max_angle,
        "start_angle": model.start_angle,
        "reuses_noise": model.reuses_noise,
        "refiner": refiner,
        "fitted_prior": None if fitted is None else {"directions": fitted.basis.shape[1], "classes": len(fitted.means)},
        "sampling": sampling,
        "preprocessing": {"fit": options.fit, "background": list(options.background)},
        "license": info.provenance.get("license"),
        "provenance": dict(info.provenance),
        "training": {name: info.training[name] for name in ("recipe", "description", "data") if name in info.training},
        "graphs": {},
    }


def _parity(folder: Path, pipe: Pipeline) -> dict[str, Any]:
    """Make images by both and return how far they are apart; and the images there and back, where there is an encoder.

    Raises:
        SphereGenError: they are further apart than `WORST`.
    """
    runner = Runner(folder)
    found: dict[str, Any] = {}
    seeds = list(range(PARITY_SEEDS))
    prompts = [f"number {seed}" for seed in seeds] if pipe.info.text.get("name") == NGRAMS else None
    for name, steps in (("one step", 1), ("as sampled", None)):
        theirs = pipe.generate(labels=prompts, seeds=seeds, steps=steps).tensor.numpy()
        found[name] = compared(runner.generate(labels=prompts, seeds=seeds, steps=steps).array, theirs)
    if "encoder" in runner.manifest["graphs"]:
        images = list(pipe.generate(seeds=seeds, steps=1).images)
        found["there and back"] = compared(runner.reconstruct(images), pipe.reconstruct(images).numpy())
    _refuse(found, WORST[runner.manifest["precision"]])
    return found


def _parity_torch(folder: Path, graphs: Mapping[str, Graph]) -> dict[str, Any]:
    """Compare each program, loaded again, with what it was traced from, for another number of samples."""
    found = {}
    for name, graph in graphs.items():
        inputs = {
            key: each.repeat(3, *(1 for _ in each.shape[1:])) if len(each) > 1 else each
            for key, each in graph.inputs.items()
        }
        with torch.no_grad():
            ours, theirs = (
                each if isinstance(each, tuple) else (each,)
                for each in (torch.export.load(folder / f"{name}.pt2").module()(**inputs), graph.module(**inputs))
            )
        found[name] = compared(ours[0].numpy(), theirs[0].numpy())
    _refuse(found, WORST["float32"])
    return found


def compared(ours: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any]) -> dict[str, float]:
    """Return the largest difference of two arrays and their PSNR in dB, 200 at most; the peak is 1, or the largest."""
    apart = np.abs(ours.astype(np.float64) - theirs)
    peak, square = max(1.0, float(np.abs(theirs).max())), float(np.square(apart).mean())
    psnr = 200.0 if square == 0 else min(200.0, 10 * math.log10(peak**2 / square))
    return {"largest": float(f"{apart.max():.3g}"), "psnr": round(psnr, 1)}


def _refuse(found: Mapping[str, Mapping[str, float]], least: float) -> None:
    for name, each in found.items():
        if not each["psnr"] >= least:
            raise SphereGenError(
                f"the exported model does not make the model's images: {name}, {each['psnr']:g} dB where at least "
                f"{least:g} are wanted; take a wider precision, or report it"
            )


def _readme(manifest: Mapping[str, Any], to: str) -> str:
    use = {
        "onnx": "```python\nfrom spheregen.export import Runner  # pip install spheregen[onnx]; needs no torch\n\n"
        'runner = Runner("path/to/this/folder")\nrunner.generate(4, seed=0).images\n```',
        "torch": "```python\nimport torch\n\n"
        'decoder = torch.export.load("decoder.pt2").module()  # inputs and shapes: manifest.json\n```',
        "web": "Serve this folder by any file server, for example `python -m http.server`, and open its address.",
    }[to]
    licence = manifest["license"] or "not told; that of the weights follows from that of the training data"
    return f"# {manifest['title']}\n\nMade by {manifest['made_by']}.\n\n{use}\n\nLicence of the weights: {licence}.\n"


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


# folders --------------------------------------------------------------------------------------------------------------


def _ours(folder: Path) -> set[str]:
    """Return the files of the export that is in a folder."""
    with contextlib.suppress(ModelFileError):
        return {MANIFEST, *read_manifest(folder).get("files", ())}
    return set()


def _check_folder(folder: Path, overwrite: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; choose a folder with --out")
    if folder.is_dir() and (folder / "config.json").is_file():
        raise ConfigError(f"{folder} is a model folder; choose another --out")
    if folder.is_dir() and any(folder.iterdir()) and not _ours(folder) and not overwrite:
        raise ConfigError(f"{folder} holds files that no export made; choose another --out, or give --overwrite")


@contextlib.contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """Yield a folder beside another one, which is gone at the end."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent) as name:
            yield Path(name)
    except OSError as error:
        raise SphereGenError(f"cannot write {folder}: {error.strerror or error}; choose another place") from error


def _move(made: Path, folder: Path, files: list[str], overwrite: bool) -> None:
    """Put the files of an export in place, the manifest last: without it a folder is no export."""
    before = _ours(folder)
    taken = [name for name in files if (folder / name).exists() and name not in before]
    if taken and not overwrite:
        raise ConfigError(f"{folder / taken[0]} is there, and no export made it; choose another --out, or --overwrite")
    (folder / MANIFEST).unlink(missing_ok=True)
    for name in before - set(files):
        (folder / name).unlink(missing_ok=True)
    for name in [*(each for each in files if each != MANIFEST), MANIFEST]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(made / name, folder / name)
