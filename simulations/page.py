"""HTML pages about runs: they load nothing, run no script, read on a phone and on paper.

Templates escape what they are given; charts and finished fragments are Markup.
"""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from simulations.plots import cell
from simulations.thinning import shown

_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters["cell"] = cell
_TEMPLATES.filters["shown"] = shown


def render(template: str, **values: object) -> Markup:
    """A page, or a fragment of one, of ``templates/``."""
    return Markup(_TEMPLATES.get_template(template).render(values))  # noqa: S704 it escapes
