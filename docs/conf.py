"""Sphinx configuration: MyST pages and an API reference from docstrings."""

from pathlib import Path

from osmose import __version__
from osmose.cli.verify import markdown, measured

project = "osmose"
author = "The osmose developers"
copyright = "2026, The osmose developers"
release = version = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
]
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "instances.md"]
suppress_warnings = ["myst.xref_missing"]  # pages link to files of the repository

html_theme = "furo"
html_title = "osmose"
autodoc_typehints = "none"
autodoc_member_order = "bysource"
default_role = "code"


def setup(app):
    """The table of instances is measured whenever the pages are built."""
    (Path(__file__).parent / "instances.md").write_text(markdown(measured()), encoding="utf-8")
