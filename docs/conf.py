"""How Sphinx builds the site: `make docs`. The pages are Markdown; generated.py makes what follows from the code."""

from docs import generated
from sphinx.application import Sphinx

from trainonce.version import __version__

project = "trainonce"
author = "The trainonce developers"
copyright = "the trainonce developers, Apache-2.0"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
source_suffix = {".md": "markdown"}
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
highlight_language = "text"  # of blocks that name none: command lines
default_role = "code"  # docstrings name things in single backticks
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "separated"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True, "exclude-members": "model_config, __new__, __init__, model_post_init"}
python_maximum_signature_line_length = 88
nitpicky = False  # types of torch and of the standard library are named, not linked

html_theme = "furo"
html_title = "trainonce"
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": False}


def _fill_in(app: Sphinx, docname: str, source: list[str]) -> None:
    source[0] = generated.filled(source[0])


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("source-read", _fill_in)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
