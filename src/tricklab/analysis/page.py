"""Lays out a report: as Markdown, and as one HTML page without external resources.

All text may be a stranger's: it is escaped for where it is shown.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from tricklab.cli.escape import for_markdown, for_terminal

Table = Sequence[Sequence[str]]  # the first row is the header

TEMPLATE = """\
<!doctype html>
<html lang=en>
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
body {
  font: 16px/1.5 system-ui, sans-serif; color: #222;
  max-width: 60rem; margin: 0 auto; padding: 1rem;
}
h1, h2, pre { overflow-wrap: anywhere; }
h1 { font-size: 1.3rem; }
h2 { font-size: 1.1rem; margin-top: 2rem; }
div { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; }
th, td { padding: .3rem .6rem; text-align: left; border-bottom: 1px solid #ddd; }
th { border-bottom: 2px solid #888; }
td + td, th + th { white-space: nowrap; }
pre { background: #f4f4f4; padding: .6rem; white-space: pre-wrap; }
main {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr));
  gap: 1rem; margin: 1.5rem 0;
}
svg { width: 100%; height: auto; }
</style>
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
<div><table>
<tr>{% for cell in section.table[0] %}<th>{{ cell }}</th>{% endfor %}</tr>
{%- for row in section.table[1:] %}
<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{%- endfor %}
</table></div>
{%- endif %}
{%- endmacro %}
{{ show(sections[0]) }}
<main>
{%- for figure in figures %}
{{ figure }}
{%- endfor %}
</main>
{%- for section in sections[1:] %}
{{ show(section) }}
{%- endfor %}
</body>
</html>
"""


class Section(NamedTuple):
    """A part of a report: a heading, or "", above a table or a shell command."""

    heading: str
    table: Table = ()
    command: str = ""


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


def to_html(title: str, sections: Sequence[Section], figures: Sequence[str]) -> str:
    """Return a report as a page: the first section, then the figures (SVG), then the others.

    Jinja2 escapes every text (autoescape); figures alone are inserted as they are.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, finalize=_printable)
    template = environment.from_string(TEMPLATE)
    svg = [Markup(figure) for figure in figures]  # drawn by `plots`
    return template.render(title=title, sections=sections, figures=svg) + "\n"


def _printable(value: Any) -> Any:
    """Return text without characters that HTML can't hold; markup as it is."""
    return value if hasattr(value, "__html__") else for_terminal(value)
