"""Line plots side by side as SVG, written by hand so that they need no library and a new figure is a small difference.

The horizontal axis is logarithmic to base 2, the vertical one starts at zero. Colours follow the reader's light or dark
setting. Knows nothing of what it draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

_WIDTH, _HEIGHT = 420, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 28, 44, 48
_STYLE = """
  text { font: 12px system-ui, sans-serif; fill: #57606a }
  .title { font-size: 14px; font-weight: 600; fill: #1f2328 }
  .grid { stroke: #d0d7de; stroke-width: 1 }
  .line { fill: none; stroke: #0969da; stroke-width: 2; stroke-linejoin: round }
  .dot { fill: #0969da }
  @media (prefers-color-scheme: dark) {
    text { fill: #9198a1 }
    .title { fill: #f0f6fc }
    .grid { stroke: #3d444d }
    .line { stroke: #4493f8 }
    .dot { fill: #4493f8 }
  }
"""


@dataclass(frozen=True)
class Panel:
    """One plot.

    Attributes:
        title: What is up.
        across: What is across.
        points: At least one ``(across, up)``, both positive.
    """

    title: str
    across: str
    points: Sequence[tuple[float, float]]


def draw(panels: Sequence[Panel]) -> str:
    """An SVG document with the panels in a row."""
    width = _WIDTH * len(panels)
    body = "\n".join(
        f'<g transform="translate({_WIDTH * number} 0)">\n{_panel(panel)}\n</g>' for number, panel in enumerate(panels)
    )
    size = f'viewBox="0 0 {width} {_HEIGHT}" width="{width}" height="{_HEIGHT}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n<style>{_STYLE}</style>\n{body}\n</svg>\n'


def ticks(highest: float) -> list[float]:
    """Three to six round numbers from zero on, the last of them not below ``highest``."""
    size = 10.0 ** math.floor(math.log10(highest))
    step = next(size * part for part in (0.2, 0.5, 1, 2) if highest / (size * part) <= 5)
    return [step * number for number in range(math.ceil(highest / step) + 1)]


def _panel(panel: Panel) -> str:
    sizes = [math.log2(size) for size, _ in panel.points]
    up = ticks(max(value for _, value in panel.points))
    span = max(sizes) - min(sizes) or 1

    def x(size: float) -> float:
        return _LEFT + (math.log2(size) - min(sizes)) / span * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - value / up[-1] * (_HEIGHT - _TOP - _BOTTOM)

    parts = [_text(_LEFT, 24, panel.title, "start", "title")]
    for value in up:
        parts.append(f'<path class="grid" d="M{_LEFT} {y(value):.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(_text(_LEFT - 8, y(value) + 4, f"{value:,.10g}", "end"))
    parts += [_text(x(size), _HEIGHT - _BOTTOM + 18, f"{size:,}", "middle") for size, _ in panel.points]
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 8, panel.across, "middle"))
    path = "L".join(f"{x(size):.1f} {y(value):.1f}" for size, value in panel.points)
    parts.append(f'<path class="line" d="M{path}"/>')
    parts += [
        f'<circle class="dot" cx="{x(size):.1f}" cy="{y(value):.1f}" r="3.5"><title>{value:,.1f}</title></circle>'
        for size, value in panel.points
    ]
    return "\n".join(parts)


def _text(x: float, y: float, text: str, anchor: str, kind: str = "label") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
