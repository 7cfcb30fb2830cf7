"""Sphinx: Markdown by MyST, the field's own theme, API pages from docstrings. `make docs` builds docs/_build/html."""

from importlib.metadata import version as installed

project = "hjepa"
author = "the hjepa authors"
copyright = "the hjepa authors"
version = release = installed("hjepa")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
smartquotes = False  # --options stay options
autodoc_typehints = "none"
autodoc_member_order = "bysource"

html_theme = "pydata_sphinx_theme"
html_title = "hjepa"
html_show_sourcelink = False
html_static_path = ["_static"]
html_css_files = ["wide.css"]
html_theme_options = {
    "show_prev_next": False,
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
    "header_links_before_dropdown": 7,
}
html_sidebars = {"**": []}
