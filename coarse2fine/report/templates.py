"""HTML from the package's templates; every value is escaped."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files
from typing import Any

import jinja2

from coarse2fine._version import __version__

_FOLDER = "web"


def render(template: str, **values: Any) -> str:
    """Fill a template in; texts are escaped."""
    return _environment().get_template(template).render(**values)


def render_page(template: str, **values: Any) -> str:
    """Fill in the template of a self-contained page, with style and script."""
    script = asset("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    own = {"style": asset("report.css"), "script": script, "script_hash": digest, "version": __version__}
    return render(template, **own, **values)


def asset(name: str) -> str:
    """Text of a file of the package."""
    return files("coarse2fine.report").joinpath(_FOLDER, name).read_text("utf-8")


@cache
def _environment() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.FunctionLoader(asset),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["count"] = lambda number: f"{number:,}"
    made.filters["percent"] = _percent
    return made


def _percent(share: float) -> str:
    """A share in percent, with three significant digits, so that a small one is not "0 %"."""
    value = share * 100
    return f"{value:,.0f} %" if value >= 100 else f"{value:.3g} %"
