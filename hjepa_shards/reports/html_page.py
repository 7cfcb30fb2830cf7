"""A page of HTML in one file: no script, nothing to fetch, and untrusted text escaped everywhere by rule.

Templates are Jinja2 with every value escaped and every name required. The style sheet is inline, under a content
security policy that allows no script, no request and no style but that one.
"""

import base64
import hashlib
import importlib.metadata
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from hjepa_shards.base.shown_text import proper, size
from hjepa_shards.reports import svg_bars

if TYPE_CHECKING:
    import jinja2

STYLE = "page.css"


def render_page(template: str, values: Mapping[str, Any]) -> str:
    """The page that a template makes of `values`.

    template: Jinja2; it gets `style`, `style_digest` (for the policy) and `version` as well, and the filters `size`
    and `bar`. Markup among the values is taken as it is, all other text is escaped.
    """
    style = resources.files("hjepa_shards.reports").joinpath(STYLE).read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return _compiled(template).render(
        values,
        style=Markup(style),
        style_digest=Markup(digest),
        version=importlib.metadata.version("hjepa"),
    )


@cache
def _compiled(template: str) -> "jinja2.Template":
    """Once a process: compiling a page takes longer than filling it in."""
    import jinja2  # only here: every process that imports this package would wait for it

    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: proper(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"size": size, "bar": svg_bars.bar}
    return environment.from_string(template)
