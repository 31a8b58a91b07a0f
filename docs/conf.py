"""Sphinx's configuration: `sphinx-build -n -W docs docs/_build` builds the pages without a network."""

from importlib.util import find_spec

import joblib_stateful

project = "joblib_stateful"
author = "the joblib_stateful authors"
version = release = joblib_stateful.__version__

extensions = ["myst_parser", "numpydoc", "sphinx.ext.autodoc"]
exclude_patterns = ["_build", "performance_figures.md"]  # the latter is part of a page
source_suffix = {".md": "markdown"}

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

default_role = "code"  # single backticks in docstrings name things, here or in other libraries
autodoc_typehints = "none"  # numpydoc's sections name the types
# The engines of the clusters are documented where these are not installed, too.
autodoc_mock_imports = [name for name in ("distributed", "ray") if find_spec(name) is None]
autosummary_generate = False
numpydoc_show_class_members = False
numpydoc_xref_param_type = False

html_theme = "furo"
html_title = "joblib_stateful"
html_show_sphinx = False
html_copy_source = False
