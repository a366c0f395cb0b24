"""Sphinx: the documentation site and the man pages. `make docs` builds both, with warnings as errors."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

import nicmodel

project = "nicmodel"
author = "the nicmodel project"
copyright = "the nicmodel project, BSD-2-Clause"
version = release = nicmodel.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "commands",
    "conformance",
    "datasheet",
    "idpf_datasheet",
    "kit",
    "selftests",
]

# Single backticks in docstrings name a Python object where there is one, and are code otherwise.
default_role = "py:obj"
smartquotes = False
highlight_language = "text"
exclude_patterns = ["_build"]
suppress_warnings: list[str] = []

myst_enable_extensions = ["colon_fence", "deflist", "fieldlist", "attrs_block", "attrs_inline"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 90
napoleon_use_ivar = True  # or the attributes of a dataclass would be described twice
napoleon_use_rtype = False
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"nicmodel {version}"
html_static_path = ["_static"]
html_css_files = ["nicmodel.css"]
html_show_sphinx = False
html_copy_source = False
# Nothing is fetched from anywhere when a page is read, and no edit link leads to a place that is not known.
html_theme_options = {"navigation_with_keys": True}
