"""Sphinx configuration; build_site.py copies it beside the staged pages and sets POSETUTOR_SITE_ROOT."""

import os
import sys
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(os.environ["POSETUTOR_SITE_ROOT"])
sys.path.insert(0, str(ROOT / "course"))

from website import api

settings = ConfigParser(delimiters=["="])
settings.read(ROOT / "settings.ini", encoding="utf-8")

project = "posetutor"
author = settings["DEFAULT"]["author"]
project_copyright = settings["DEFAULT"]["copyright"]
release = version = settings["DEFAULT"]["version"]
extensions = ["myst_nb", "sphinx.ext.viewcode", "website.mathml"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
exclude_patterns = ["_extra", "conf.py"]

nb_execution_mode = "off"
nb_ipywidgets_js: dict[str, dict] = {}  # no script from the net; live widgets have a static twin
nb_merge_streams = True
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath", "fieldlist"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header", "mystnb.unknown_mime_type", "ref.python"]  # two modules may use one type name
python_maximum_signature_line_length = 76
python_use_unqualified_type_names = True
add_module_names = False
viewcode_follow_imported_members = False
toc_object_entries_show_parents = "hide"
highlight_language = "ipython3"

html_theme = "pydata_sphinx_theme"
html_context = {"default_mode": "auto"}
html_title = "posetutor"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_extra_path = ["_extra"]
html_css_files = ["course.css"]
html_js_files = ["course.js"]
html_favicon = "_static/logo.svg"
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_permalinks_icon = "#"
html_sidebars = {page: [] for page in ("index", "claims", "glossary", "routes", "search", "genindex", "papers/*", "_modules/**")}
html_theme_options = {
    "logo": {"text": "posetutor", "image_light": "_static/logo.svg", "image_dark": "_static/logo.svg", "alt_text": "posetutor, home"},
    "navbar_start": ["navbar-logo"],
    "navbar_align": "left",
    "navbar_end": ["theme-switcher"],
    "navbar_persistent": ["search-button"],
    "header_links_before_dropdown": 7,
    "show_nav_level": 2,
    "navigation_depth": 3,
    "collapse_navigation": False,
    "show_toc_level": 2,
    "secondary_sidebar_items": {"**": ["page-toc"], "index": [], "search": [], "genindex": [], "claims": ["page-toc"], "glossary": []},
    "article_header_start": ["breadcrumbs"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
    "search_bar_text": "Search the course",
    "back_to_top_button": False,
}


def find_source(app, name):  # noqa: ANN001, ANN201 - the signature of a Sphinx event
    """Source text and places of a module, so that viewcode imports nothing."""
    path = ROOT.joinpath(*name.split(".")).with_suffix(".py")
    if not path.is_file():
        return None
    module = api.read_module(path.read_text(encoding="utf-8"), name)
    return module.source, api.tags(module)


def setup(app):  # noqa: ANN001, ANN201
    """Connect the source finder."""
    app.connect("viewcode-find-source", find_source)
