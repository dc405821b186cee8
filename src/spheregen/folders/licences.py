"""The licences of parts that a converted folder holds: their names for the card, and their texts as files beside it."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from spheregen.errors import ConfigError

MIT = """MIT License

{copyright}

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


@dataclass(frozen=True, kw_only=True)
class Licence:
    """The licence of a part whose weights a folder holds."""

    name: str
    address: str
    file: str
    """The file of its text in the folder."""
    asks: str = ""
    """A summary, for where the text is not at hand."""


DINOV3 = Licence(
    name="DINOv3 License",
    address="https://ai.meta.com/resources/models-and-libraries/dinov3-license/",
    file="LICENSE-DINOv3.txt",
    asks="In short, of its version of August 2025, and the text alone counts: pass these weights, or others made from "
    "them,\non under this licence alone and together with a copy of it; acknowledge DINOv3 in publications of research "
    "that used\nit; keep to the law, that of trade controls and of privacy among it; no use for the military or "
    "warfare, nuclear\nindustries, espionage, guns or illegal weapons, or what ITAR covers; no reverse engineering.",
)
APACHE = Licence(name="Apache-2.0", address="https://www.apache.org/licenses/LICENSE-2.0", file="LICENSE-encoder.txt")
OTHER = Licence(name="the licence of its publisher", address="the page of its publisher", file="LICENSE-encoder.txt")
OF_ENCODERS: Mapping[str, Licence] = {
    "dinov3_vit": DINOV3,
    "dinov2": APACHE,
    "dinov2_with_registers": APACHE,
    "siglip_vision_model": APACHE,
}
"""Those of frozen encoders, by their `model_type`."""


def notice(licence: Licence, part: str, given: Path | None) -> str:
    """Return the file on the licence of a part: whose it is, and its text, or where that is to be had.

    Args:
        licence: of the part.
        part: its name.
        given: a file with the text.

    Raises:
        ConfigError: it cannot be read.
    """
    head = (
        f"The encoder in this folder ({part}) is not part of Sphere Encoder 2. Its weights are under the "
        f"{licence.name}: {licence.address}\n\n"
    )
    if given is not None:
        try:
            return head + given.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the licence {given}; give a text file in UTF-8") from error
    if licence is APACHE and (text := _apache()):
        return head + text
    asks = f"{licence.asks}\n\n" if licence.asks else ""
    return f"{head}{asks}Add its text, which is there, to this folder before you pass the weights on.\n"


def _apache() -> str:
    """Return the text of Apache-2.0, which is also this package's licence; nothing where it was installed without."""
    try:
        files = importlib.metadata.files("spheregen") or []
    except importlib.metadata.PackageNotFoundError:
        return ""
    return next((file.read_text(encoding="utf-8") for file in files if file.name == "LICENSE"), "")
