"""Sphinx configuration. Nothing is fetched from the network; the gallery scripts are written from the studies."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent / "src")]

import gallery_scripts  # noqa: E402
import matplotlib as mpl  # noqa: E402

import gaugefix  # noqa: E402

mpl.use("agg")
gallery_scripts.write(HERE / "studies_scripts")
# a build takes over what has passed: of an earlier build, of `make studies`, or of the folder that the variable names
os.environ.setdefault("GAUGEFIX_DOCS_RESULTS", str(HERE / "_build" / "studies"))

project = "gaugefix"
author = "The gaugefix developers"
copyright = "the gaugefix developers, Apache-2.0"
version = release = gaugefix.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "matplotlib.sphinxext.plot_directive",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
    "docstrings",
    "papers_table",
]
exclude_patterns = ["_build", "studies_scripts", "gallery/**/*.py", "gallery/sg_execution_times.rst"]
templates_path = ["templates"]
nitpicky = False
default_role = "code"  # docstrings write `name`

html_theme = "furo"
html_title = "gaugefix"
html_static_path = ["_static"]
html_css_files = ["gaugefix.css"]
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#1f4e79", "color-brand-content": "#1f4e79"},
    "dark_css_variables": {"color-brand-primary": "#8ab6e0", "color-brand-content": "#8ab6e0"},
    "navigation_with_keys": True,
}
html_show_sourcelink = False
pygments_style, pygments_dark_style = "friendly", "monokai"

autosummary_generate = True
autosummary_ignore_module_all = True
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the signatures carry shapes; napoleon lists the arguments
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_custom_sections = ["Cost", "Source"]

plot_html_show_source_link = False
plot_html_show_formats = False
plot_formats = [("svg", 100)]
plot_basedir = plot_working_directory = str(HERE / "figures")
plot_apply_rcparams = True
plot_rcparams = {
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a8f98",
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "svg.hashsalt": "gaugefix",
}

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

sphinx_gallery_conf = {
    "examples_dirs": ["studies_scripts"],
    "gallery_dirs": ["gallery"],
    "filename_pattern": r"plot_",
    "abort_on_example_error": True,
    "plot_gallery": "True",
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "min_reported_time": 1e9,
    "remove_config_comments": True,
    "image_scrapers": ("gallery_scripts",),
    "capture_repr": (),
    "reset_modules": (),
    "write_computation_times": False,
    "only_warn_on_example_error": False,
}
