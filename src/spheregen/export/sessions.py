"""The graphs of an exported folder, opened by onnxruntime."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spheregen.errors import ConfigError, ModelFileError
from spheregen.export.manifest import MANIFEST
from spheregen.export.noise import Array
from spheregen.export.prompts import NEGATIVE, Texts
from spheregen.export.sums import filled
from spheregen.external import import_package


class Sessions:
    """The graphs by name, see `spheregen.export.graphs`, and the manifest that tells of them.

    Raises:
        ModelFileError: a file is missing, or not as it was written.
        SphereGenError: onnxruntime is missing.
    """

    def __init__(
        self, folder: Path, manifest: Mapping[str, Any], providers: Sequence[str] | None, threads: int | None
    ) -> None:
        self.manifest = manifest
        self.texts = Texts(manifest["text"]) if manifest.get("text") else None
        """Of a model that follows texts."""
        self.predicts_images: bool = manifest["predicts"] == "images"
        runtime = import_package("onnxruntime", "onnx", "running an exported model")
        options = runtime.SessionOptions()
        options.add_session_config_entry("session.disable_quant_qdq", "1")  # fold small weights once, at the start
        if chosen := threads or int(os.environ.get("OMP_NUM_THREADS") or 0):
            options.intra_op_num_threads = chosen
        self._sessions: dict[str, Any] = {}
        for name, about in manifest["graphs"].items():
            data = _checked(folder / about["file"], about["sha256"])
            self._sessions[name] = runtime.InferenceSession(
                data, options, providers=list(providers or ["CPUExecutionProvider"])
            )
        self._inputs = {name: {each.name for each in of.get_inputs()} for name, of in self._sessions.items()}

    def __contains__(self, graph: str) -> bool:
        return graph in self._sessions

    def call(self, graph: str, **inputs: Any) -> Array:
        """Return the first output of a graph, which takes those of the inputs that it knows."""
        return self.outputs(graph, inputs)[0]

    def outputs(self, graph: str, inputs: Mapping[str, Any]) -> list[Array]:
        if graph not in self:
            raise ConfigError(f"this model came without its {graph}; export the whole model")
        feeds = {name: value for name, value in inputs.items() if name in self._inputs[graph]}
        return self._sessions[graph].run(None, feeds)  # type: ignore[no-any-return]

    def place(self, latents: Array, noise: Array | None = None, turn: float = 0.0) -> Array:
        moved = np.zeros_like(latents) if noise is None else noise
        return self.call("place", latents=latents, noise=moved, turn=filled(turn, len(latents)))

    def encoded(self, x: Array, weights: Array) -> Array:
        return self.call("encoder", images=x, condition=weights)

    def draw(self, noise: Array, weights: Array, temperature: float) -> Array:
        return self.call("draw", noise=noise, weights=weights, temperature=filled(temperature, 1))

    def weights(self, ids: Sequence[Any] | None, count: int) -> Array:
        """Return the shares of the classes (B, K + 1) of ids, or prompts as graphs take them; of None the null."""
        if self.texts is not None:
            return self.texts.weights(ids, count)
        null = self.manifest["num_classes"]
        shares: Array = np.eye(null + 1, dtype=np.float32)[[null] * count if ids is None else list(ids)]
        return shares

    def null(self, count: int, settings: Mapping[str, Any]) -> Array:
        """Return what guidance pulls away from, (B, K + 1): the null, or a negative prompt."""
        text = settings.get(NEGATIVE)
        return self.weights(None if self.texts is None else self.texts.of_each(text, count), count)


def _checked(path: Path, sha256: str) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelFileError(f"cannot read {path} ({error.strerror or error}); export the model again") from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ModelFileError(f"{path} is not the file that {MANIFEST} tells of; export the model again")
    return data
