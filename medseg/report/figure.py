"""Figures as inline SVG: one style, no global state, words for those who cannot see them."""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, SOFT, FAINT = "#1b1f24", "#6b7280", "#e5e7eb"

_STYLE: dict[Any, Any] = {
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9.0,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#9ca3af",
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    # Text stays text: it can be searched, read aloud and copied, and the page's own font shows.
    "svg.fonttype": "none",
}

_METADATA = re.compile(r"<metadata>.*?</metadata>", re.DOTALL)
_FONT = re.compile(r"font-family:[^;\"]*;?")
_FONT_SHORTHAND = re.compile(r"font:\s*((?:[\w.]+\s+)*?[\d.]+px)\s+[^;\"]*")
_SIZE = re.compile(r'<svg ([^>]*?)(?:height|width)="[^"]*pt"\s')


@dataclass(frozen=True)
class Picture:
    """One figure of the page.

    Parameters
    ----------
    svg : Markup
        The drawing; its own words are escaped already.
    caption : str
        What is shown, with its n.
    wide_px : int
        Below this width the figure scrolls instead of shrinking, so that its words stay legible.
    """

    svg: Markup
    caption: str
    wide_px: int = 640


@contextmanager
def house_style() -> Iterator[None]:
    """Draw in the house style inside the block; matplotlib's settings are restored after it."""
    with mpl.rc_context(_STYLE):
        yield


def _own_font(match: re.Match[str]) -> str:
    parts = match.group(1).split()
    weight = f"font-weight: {parts[0]}; " if len(parts) > 1 else ""
    return f"{weight}font-size: {parts[-1]}"


def to_svg(figure: Figure, *, alt: str) -> Markup:
    """Return ``figure`` as an ``<svg>`` element with ``alt`` as its accessible name.

    The identifiers inside are salted with ``alt`` so that two figures on one page never share one.
    """
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": alt}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, bbox_inches="tight")
    text = buffer.getvalue()
    text = _METADATA.sub("", text[text.index("<svg") :])
    text = _FONT_SHORTHAND.sub(_own_font, _FONT.sub("", text))
    salt = f"f{zlib.crc32(alt.encode()):08x}-"
    text = re.sub(r'\bid="', f'id="{salt}', text)
    text = re.sub(r'href="#', f'href="#{salt}', text).replace("url(#", f"url(#{salt}")
    text = _SIZE.sub(r"<svg \1", _SIZE.sub(r"<svg \1", text))
    name = Markup('<svg role="img" aria-label="{}" ').format(alt)
    return Markup(text.replace("<svg ", name, 1))


def safe_text(words: str) -> str:
    """Return ``words`` so that matplotlib takes no dollar sign for mathematics."""
    return words.replace("$", r"\$")


def quiet_grid(axes: Axes, *, axis: str) -> None:
    """Draw a faint grid behind the data along "x", "y" or "both"."""
    axes.set_axisbelow(True)
    axes.grid(visible=True, axis=axis, color=FAINT, linewidth=0.8)  # pyright: ignore[reportArgumentType]


def interval_mark(
    low: float, mean: float, high: float, *, colour: str, limits: tuple[float, float]
) -> Markup:
    """Return a small inline drawing of an interval for a table cell."""
    start, stop = limits
    span = (stop - start) or 1.0
    x = [round(4 + 112 * min(max((v - start) / span, 0.0), 1.0), 1) for v in (low, mean, high)]
    zero = 4 + 112 * (0 - start) / span
    rule = (
        f'<line x1="{zero:.1f}" x2="{zero:.1f}" y1="0" y2="16" class="zero"/>'
        if start < 0 < stop
        else ""
    )
    ends, middle = f'x1="{x[0]}" x2="{x[2]}" y1="8" y2="8"', f'cx="{x[1]}" cy="8" r="3.6"'
    return Markup(
        '<svg class="mark" viewBox="0 0 120 16" aria-hidden="true">'
        f'<line x1="4" x2="116" y1="8" y2="8" class="rail"/>{rule}'
        f'<line {ends} stroke="{escape(colour)}" stroke-width="2.5"/>'
        f'<circle {middle} fill="{escape(colour)}" stroke="#fff" stroke-width=".8"/></svg>'
    )
