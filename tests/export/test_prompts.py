"""The vectors of prompts in a page are those of Python."""

from __future__ import annotations

import importlib.resources
import json
import shutil
import subprocess

import numpy as np
import pytest

from spheregen.texts import ngram_vectors

TEXTS = (
    "A cat on a red heart",
    "två röda äpplen 红苹果 🙂 !?",
    "Straße ΟΔΟΣ İI ıK ﬁne 3½",
    "",
    "x " * 40 + "long" * 150,
)


@pytest.mark.skipif(shutil.which("node") is None, reason="scripts of pages are tried by node")
def test_prompts_have_the_same_vectors_in_a_page() -> None:
    script = importlib.resources.files("spheregen.export") / "web" / "texts.js"
    code = (
        f"const {{ vectorOf }} = await import({json.dumps(f'file://{script}')});"
        f"console.log(JSON.stringify({json.dumps(TEXTS)}.map((text) => Array.from(vectorOf(text, 64)))));"
    )
    command = ["node", "--input-type=module", "-e", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert np.abs(np.array(json.loads(done.stdout)) - ngram_vectors(TEXTS, 64)).max() < 1e-6
