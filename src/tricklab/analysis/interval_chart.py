"""The verdicts on claims as a picture: an SVG with the interval of each expectation.

All share one axis: the distance from the bound, to the right as expected, in units of the smallest
difference that matters. Equivalence is claimed within the grey zone, from -1 to 1.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape

from tricklab.analysis.claims import Judged
from tricklab.analysis.statistics import format_number
from tricklab.analysis.verdicts import FAIL, PASS, interval

WIDTH = 1000
ROW = 18  # height of a line
TOP = 40
AXIS_LEFT, AXIS_RIGHT = 550, 840
LIMIT = 4.0  # of the axis; what is beyond ends in an arrow
TICKS = (-4, -2, 0, 2, 4)
COLORS = {PASS: "good", FAIL: "bad"}
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #1f2328 }
.claim { font-weight: 600 } .small { font-size: 11px; fill: #59636e } .end { text-anchor: end }
.middle { text-anchor: middle } .zone { fill: #8c959f; opacity: 0.18 } .axis { stroke: #8c959f }
.good { stroke: #1a7f37; fill: #1a7f37 } .bad { stroke: #cf222e; fill: #cf222e }
.open { stroke: #59636e; fill: #59636e } line { stroke-width: 2 } .axis { stroke-width: 1 }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .small { fill: #9198a1 } .good { stroke: #3fb950; fill: #3fb950 }
.bad { stroke: #f85149; fill: #f85149 } .open { stroke: #9198a1; fill: #9198a1 } }
"""


def draw_claims(claims: Mapping[str, Sequence[Judged]]) -> str:
    """Return an SVG of the verdicts on claims, by their statements."""
    parts: list[str] = []
    y = TOP
    for statement, verdicts in claims.items():
        parts.append(text(8, y + 13, statement, "claim"))
        y += ROW
        for judged in verdicts:
            parts += draw_verdict(judged, y)
            y += ROW
        y += ROW // 3
    return "\n".join([*frame(y), *parts, "</svg>\n"])


def frame(bottom: int) -> list[str]:
    """Return the start of the SVG, with the axis down to `bottom`."""
    height = bottom + 8
    size = f'width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
    left, right = position(-1), position(1)
    zone = f'x="{left:.0f}" y="{TOP}" width="{right - left:.0f}" height="{bottom - TOP}"'
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{STYLE}</style>']
    parts.append(f'<rect class="zone" {zone}/>')
    parts.append(
        text(position(0), 14, "units of the smallest difference that matters", "small middle")
    )
    parts.append(text(AXIS_LEFT - 14, 30, "not as claimed", "small end"))
    parts.append(text(AXIS_RIGHT + 14, 30, "as claimed", "small"))
    for tick in TICKS:
        parts.append(text(position(tick), 30, f"{tick:+d}" if tick else "0", "small middle"))
    x = position(0)
    parts.append(f'<line class="axis" x1="{x:.0f}" y1="{TOP}" x2="{x:.0f}" y2="{bottom}"/>')
    return parts


def draw_verdict(judged: Judged, y: int) -> list[str]:
    """Return the line of an expectation, at the height y."""
    low, mean, high = scale(judged)
    kind = COLORS.get(judged.verdict, "open")
    middle = y + ROW // 2
    start, end = position(low), position(high)
    parts = [text(20, y + 13, str(judged.expectation), "small")]
    parts.append(
        f'<line class="{kind}" x1="{start:.1f}" y1="{middle}" x2="{end:.1f}" y2="{middle}"/>'
    )
    for value, character, anchor in ((low, "◂", "end"), (high, "▸", "start")):
        if abs(value) > LIMIT and (value < 0) == (character == "◂"):
            parts.append(arrow(value, middle, character, anchor, kind))
    if abs(mean) <= LIMIT:
        parts.append(f'<circle class="{kind}" cx="{position(mean):.1f}" cy="{middle}" r="4"/>')
    parts.append(text(AXIS_RIGHT + 14, y + 13, describe(judged), "small"))
    return parts


def describe(judged: Judged) -> str:
    """Return the verdict and the mean, or what is excluded."""
    if judged.verdict not in COLORS:
        return judged.verdict.replace("larger than", ">")
    sign = "+" if judged.expectation.than else ""
    return f"{judged.verdict} {format_number(judged.measured.mean, sign)}"


def arrow(value: float, middle: int, character: str, anchor: str, kind: str) -> str:
    style = f'class="{kind}" style="text-anchor: {anchor}; stroke: none"'
    return f'<text x="{position(value):.1f}" y="{middle + 4}" {style}>{character}</text>'


def scale(judged: Judged) -> tuple[float, float, float]:
    """Return low, mean and high: from the bound, as expected to the right, in units that matter."""
    expectation, matters, measured, _ = judged
    low, high = interval(expectation, measured)
    if expectation.is_equivalence:
        return low / matters, measured.mean / matters, high / matters
    above = math.isfinite(expectation.above)
    bound = expectation.above if above else expectation.below
    sign = 1 if above else -1
    ends = sorted(sign * (end - bound) / matters for end in (low, high))
    return ends[0], sign * (measured.mean - bound) / matters, ends[1]


def position(value: float) -> float:
    """Return the x of a value on the axis, at its end if it is beyond."""
    clipped = min(max(value, -LIMIT), LIMIT)
    return AXIS_LEFT + (clipped + LIMIT) / (2 * LIMIT) * (AXIS_RIGHT - AXIS_LEFT)


def text(x: float, y: float, content: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.0f}" y="{y}">{escape(content)}</text>'
