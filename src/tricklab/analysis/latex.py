"""A table for a paper, as LaTeX with `booktabs`."""

import re
from collections.abc import Sequence

from tricklab.analysis.page import Table
from tricklab.cli.escape import for_latex

TEMPLATE = r"""% Needs \usepackage{{booktabs}}; letters beyond Latin need XeLaTeX or LuaLaTeX.
\begin{{table}}
  \centering
  \caption{{{caption}}}
  \begin{{tabular}}{{l{columns}}}
    \toprule
    {header}
    \midrule
    {rows}
    \bottomrule
  \end{{tabular}}
\end{{table}}
"""
MINUS = re.compile(r"(?<![\w.])-(?=\d)")


def to_latex(title: str, table: Table) -> str:
    """Return a table, its first column text and the others numbers, with a caption."""
    header, *rows = table
    return TEMPLATE.format(
        caption=for_latex(title),
        columns="r" * (len(header) - 1),
        header=format_row(header),
        rows="\n    ".join(map(format_row, rows)),
    )


def format_row(cells: Sequence[str]) -> str:
    label, *others = map(for_latex, cells)
    numbers = [MINUS.sub("$-$", cell) for cell in others]
    return " & ".join([label, *numbers]) + r" \\"
