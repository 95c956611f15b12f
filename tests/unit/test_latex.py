"""The table of a report for LaTeX."""

import re
import string

import pytest

from tricklab.analysis.latex import to_latex

HEADER = ["configuration", "n", "95 % interval"]


def test_table_has_rules_and_a_row_for_each_configuration():
    text = to_latex("test/acc_top5", [HEADER, ["lr=-1", "3 of 3", "-0.5 to 0.1"], ["b", "", ""]])
    lines = [line.strip() for line in text.splitlines()]
    assert lines[0].startswith(r"% Needs \usepackage{booktabs}")
    assert lines[3:] == [
        r"\caption{test/acc\_top5}",
        r"\begin{tabular}{lrr}",
        r"\toprule",
        r"configuration & n & 95 \% interval \\",
        r"\midrule",
        r"lr=-1 & 3 of 3 & $-$0.5 to 0.1 \\",
        r"b &  &  \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]


@pytest.mark.parametrize(
    "name",
    ["a}b{{", "a & b", r"\\ \end{tabular}", "% x", "$", "a\n\n%", "[2pt]", "*", string.punctuation],
)
def test_a_name_changes_no_structure(name):
    text = to_latex(name, [[name, "n"], [name, "1"]])
    literal = re.sub(r"\\[a-z]+34|\\[{}&%#$_\\]", "", text.replace(r"\\" "\n", "\n"))
    assert literal.count("{") == literal.count("}")
    assert literal.count("&") == 2
    assert literal.count("%") == 1  # the first line
    assert literal.count("$") == 0
    assert literal.count("\n") == 12
    assert not re.search(r"^\s*[\[*]", literal, re.MULTILINE)
