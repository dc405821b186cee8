"""The page of a model in the browser: plain files of this package, the model, and the runtime of npm."""

from __future__ import annotations

import gzip
import hashlib
import importlib.resources
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spheregen.errors import ConfigError
from spheregen.files import parse_json
from spheregen.folders.licences import MIT

PACKAGE = "onnxruntime-web"
VERSION = "1.30"
"""Of onnxruntime-web, the one that the page is tested with."""
INSTALL = f"npm install {PACKAGE}@{VERSION}"
SCRIPTS = {"ort.webgpu.min.mjs": "webgpu.js", "ort.wasm.min.mjs": "wasm.js"}
"""Of the package's `dist` -> of the page's `runtime`; .js is served as a script everywhere."""
BINARIES = {"ort-wasm-simd-threaded.asyncify": "webgpu", "ort-wasm-simd-threaded": "wasm"}
"""The same of a loader .mjs and a binary .wasm each, which is packed by gzip to a quarter."""


@dataclass(frozen=True)
class Runtime:
    """The npm package."""

    folder: Path
    version: str


def find_runtime(given: str | Path | None = None) -> Runtime:
    """Find the npm package onnxruntime-web: the folder that is given, else in node_modules here or above.

    Raises:
        ConfigError: it is not there; the message has the command that installs it.
    """
    here = Path.cwd()
    places = [Path(given)] if given else [each / "node_modules" / PACKAGE for each in (here, *here.parents)]
    for place in [*places, *(each / "node_modules" / PACKAGE for each in places if given)]:
        try:
            about = parse_json((place / "package.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if not isinstance(about, dict) or about.get("name") != PACKAGE:
            continue
        wanted = [*SCRIPTS, *(f"{name}{suffix}" for name in BINARIES for suffix in (".mjs", ".wasm"))]
        if lacking := [name for name in wanted if not (place / "dist" / name).is_file()]:
            raise ConfigError(f"{place} has no dist/{lacking[0]}; get the version that the page is made for: {INSTALL}")
        return Runtime(place, str(about.get("version", "")))
    where = f"at {given}" if given else f"in {here} or above"
    raise ConfigError(
        f"a page needs the npm package {PACKAGE}, and there is none {where}; get it once by: {INSTALL} (no network "
        "afterwards), or name its folder by --runtime"
    )


def add_page(folder: Path, manifest: Mapping[str, Any], runtime: Runtime) -> None:
    """Write the page and its runtime into the folder of an exported model."""
    assets = importlib.resources.files("spheregen.export") / "web"
    for each in assets.iterdir():
        (folder / each.name).write_bytes(each.read_bytes())
    (folder / "runtime").mkdir()
    source = runtime.folder / "dist"
    for name, ours in SCRIPTS.items():
        (folder / "runtime" / ours).write_bytes(_script((source / name).read_bytes()))
    for name, ours in BINARIES.items():
        (folder / "runtime" / f"{ours}-loader.js").write_bytes(_script((source / f"{name}.mjs").read_bytes()))
        packed = gzip.compress((source / f"{name}.wasm").read_bytes(), compresslevel=9, mtime=0)
        (folder / "runtime" / f"{ours}.bin").write_bytes(packed)
    licence = MIT.format(copyright="Copyright (c) Microsoft Corporation")
    (folder / "runtime" / "LICENSE.txt").write_text(
        f"{PACKAGE} {runtime.version}, https://github.com/microsoft/onnxruntime\n\n{licence}", encoding="utf-8"
    )
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    found = hashlib.sha256(b"".join((folder / name).read_bytes() for name in names)).hexdigest()[:16]
    worker = folder / "offline.js"
    text = worker.read_text(encoding="utf-8").replace("VERSION_OF_THE_EXPORT", found)
    files = "".join(f'  "./{name}",\n' for name in names if name not in ("offline.js", "README.md"))
    worker.write_text(text.replace("  // FILES_OF_THE_EXPORT\n", files), encoding="utf-8")


def _script(data: bytes) -> bytes:
    """Leave out the address of a source map, which is not part of the page."""
    head, mark, _ = data.rpartition(b"//# sourceMappingURL=")
    return head if mark else data
