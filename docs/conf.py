"""The documentation site: sphinx and furo, pages in Markdown, the reference from docstrings, settings and commands."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

import spheregen

project = "SphereGen"
author = "The SphereGen developers"
release = version = spheregen.__version__
copyright = "the SphereGen developers, Apache-2.0"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "docstrings",
    "reference",
]
default_role = "code"
exclude_patterns = ["_build"]
myst_heading_anchors = 4
myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = ["math"]  # as GitHub shows it
autodoc_typehints = "description"
autodoc_type_aliases = {name: name for name in ("Labels", "Picture", "Pictures", "Schedule", "StepNoise")}
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "undoc-members": False}
napoleon_google_docstring = True
html_theme = "furo"
html_title = "SphereGen"
html_static_path: list[str] = []
