"""HTML view of a result in notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from coarse2fine.results.overlays import data_uri


def notebook_html(lines: Sequence[str], picture: bytes | None) -> str:
    """A small picture beside a few lines of text, as HTML; texts are escaped.

    Parameters
    ----------
    lines : sequence of str
        The first is a heading.
    picture : bytes or None
        A JPEG.
    """
    first, *rest = (escape(line) for line in lines)
    shown = ""
    if picture is not None:
        shown = f'<img src="{data_uri(picture, ".jpg")}" alt="" style="max-width:320px;border-radius:6px">'
    text = "<br>".join([f"<b>{first}</b>", *rest])
    return (
        '<div style="display:flex;gap:16px;align-items:flex-start;flex-wrap:wrap">'
        f'{shown}<div style="line-height:1.5">{text}</div></div>'
    )
