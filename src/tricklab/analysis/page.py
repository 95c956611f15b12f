"""Lays out a report: as Markdown, and as one HTML page without external resources.

All text may be a stranger's: it is escaped for where it is shown.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from tricklab.cli.escape import for_markdown, for_terminal

if TYPE_CHECKING:
    from markupsafe import Markup

BREAK = re.compile(r"(?<=[.,_=/])(?=[^\W\d_])")  # before a letter: no number is broken
Table = Sequence[Sequence[str]]  # the first row is the header

STYLE = """\
:root { --text: #222; --paper: #fff; --line: #ddd; --rule: #888; --code: #f4f4f4; --link: #0550ae; }
@media screen and (prefers-color-scheme: dark) {
  :root {
    --text: #ddd; --paper: #161616; --line: #3a3a3a; --rule: #888; --code: #262626; --link: #79b8ff;
    color-scheme: dark;
  }
  svg { filter: invert(.9) hue-rotate(180deg); }
}
body {
  font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--paper);
  max-width: 60rem; margin: 0 auto; padding: 1rem;
}
h1, h2, pre { overflow-wrap: anywhere; }
h1 { font-size: 1.3rem; }
h2 { font-size: 1.1rem; margin-top: 2rem; }
a { color: var(--link); }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td {
  padding: .3rem .6rem; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line);
}
th { border-bottom: 2px solid var(--rule); }
td { white-space: nowrap; }
td.long { white-space: normal; }
small { display: block; }
small a { display: inline-block; min-width: 1.2em; }
pre { background: var(--code); padding: .6rem; white-space: pre-wrap; }
.figures {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr));
  gap: 1.5rem 1rem; margin: 1.5rem 0;
}
figure { margin: 0; max-width: 36rem; }
figcaption { font-size: .85rem; }
svg { width: 100%; height: auto; }
@media print, (max-width: 40rem) {
  td.long:first-child { min-width: 6rem; overflow-wrap: anywhere; }
}
@media (max-width: 40rem) {
  body { padding: .75rem; }
  table { font-size: .7rem; }
  th, td { padding: .3rem .2rem; }
}
@media print {
  body { max-width: none; padding: 0; font-size: 11pt; }
  .table { overflow: visible; }
  .figures { grid-template-columns: 1fr 1fr; }
  table, figcaption { font-size: 8pt; }
  h2, figcaption { break-after: avoid; }
  h2, tr, figure, pre { break-inside: avoid; }
  pre { border: 1px solid var(--line); }
  small { display: none; }
}
"""

TEMPLATE = """\
<!doctype html>
<html lang=en>
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
{{ style }}</style>
</head>
<body>
<h1>{{ title }}</h1>
{%- macro show(section) %}
{%- if section.heading %}
<h2>{{ section.heading }}</h2>
{%- endif %}
{%- if section.command %}
<pre>{{ section.command }}</pre>
{%- else %}
<div class="table"><table>
<thead>
<tr>{% for cell in section.table[0] %}<th>{{ cell | breakable }}</th>{% endfor %}</tr>
</thead>
{%- for row in section.table[1:] %}
<tr>
{%- for cell in row %}<td{% if cell | length > 10 %} class="long"{% endif %}>{{ cell | breakable }}
{%- if loop.first and section.links.get(cell) %}<small>runs:
{%- for link in section.links[cell] %} <a href="{{ link.target }}">{{ link.text }}</a>{% endfor -%}
</small>{% endif %}</td>{% endfor %}</tr>
{%- endfor %}
</table></div>
{%- endif %}
{%- endmacro %}
{{ show(sections[0]) }}
{%- if figures %}
<div class="figures">
{%- for figure in figures %}
<figure>
<figcaption>{{ figure.title }}</figcaption>
{{ figure.svg | safe }}
</figure>
{%- endfor %}
</div>
{%- endif %}
{%- for section in sections[1:] %}
{{ show(section) }}
{%- endfor %}
</body>
</html>
"""


class Link(NamedTuple):
    """A link of a page: its text and its target, an URL."""

    text: str
    target: str


class Figure(NamedTuple):
    """A figure of a page: its title, and an SVG element that is inserted as it is."""

    title: str
    svg: str


class Section(NamedTuple):
    """A part of a report: a heading, or "", above a table or a shell command.

    On a page, `links` stand below the first cell of a row, which is their key.
    """

    heading: str
    table: Table = ()
    command: str = ""
    links: Mapping[str, Sequence[Link]] = MappingProxyType({})


def to_markdown(title: str, sections: Sequence[Section]) -> str:
    """Return a report as Markdown that reads well as plain text."""
    parts = [f"# {for_markdown(title)}"]
    for section in sections:
        if section.heading:
            parts.append(f"## {for_markdown(section.heading)}")
        if section.command:
            parts.append(f"    {for_terminal(section.command)}")
        else:
            parts.append(format_table(section.table))
    return "\n\n".join(parts) + "\n"


def format_table(table: Table, escape: Callable[[str], str] = for_markdown) -> str:
    """Return a Markdown table with aligned columns; `escape` makes text of each cell."""
    rows = [[escape(cell) for cell in row] for row in table]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    header, *others = [format_row(row, widths) for row in rows]
    ruler = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([header, ruler, *others])


def format_row(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
    return f"| {' | '.join(padded)} |"


def escape_pipes(cell: str) -> str:
    """Return a cell of our own text, in which Markdown is meant."""
    return cell.replace("|", "\\|")


def to_html(title: str, sections: Sequence[Section], figures: Sequence[Figure]) -> str:
    """Return a report as a page: the first section, then the figures, then the others.

    Jinja2 escapes every text (autoescape); the SVG of figures alone is inserted as it is.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, finalize=_printable)
    environment.filters["breakable"] = _breakable
    template = environment.from_string(TEMPLATE)
    style = Markup(STYLE)
    return template.render(title=title, style=style, sections=sections, figures=figures) + "\n"


def _printable(value: Any) -> Any:
    """Return text without characters that HTML can't hold; markup as it is."""
    return value if hasattr(value, "__html__") else for_terminal(value)


def _breakable(text: str) -> "Markup":
    """Return escaped text in which a line may end behind punctuation."""
    from markupsafe import Markup

    return Markup("<wbr>").join(BREAK.split(for_terminal(text)))
