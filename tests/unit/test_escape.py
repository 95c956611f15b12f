"""A stranger's text in the places where it is shown."""

import pytest

from tricklab.cli.escape import for_csv, for_latex, for_markdown, for_terminal


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, höher 猫", "plain text, höher 猫"),
        ("\x1b[2Jgone", "\\x1b[2Jgone"),
        ("a\nerror: b\r", "a\\nerror: b\\r"),
        ("a\tb\x00\x7f\x9b", "a\\tb\\x00\\x7f\\x9b"),
        ("abc\u202edcb", "abc\\u202edcb"),
        ("zero\u200bwidth \ufeff", "zero\\u200bwidth \\ufeff"),
        ("line\u2028end", "line\\u2028end"),
        ("caf\udce9", "caf\\udce9"),
        (3, "3"),
        (None, "None"),
    ],
)
def test_for_terminal_returns_one_line_without_controls(text, shown):
    assert for_terminal(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a|b", "a\\|b"),
        ("<script>", "\\<script\\>"),
        ("[x](javascript:y)", "[x\\](javascript:y)"),
        ("`code` *b* _i_", "\\`code\\` \\*b\\* \\_i\\_"),
        ("# head\n| a |", "# head\\\\n\\| a \\|"),
        ("a\\b", "a\\\\b"),
        ("augment=[flip,crop] weight_decay=1", "augment=[flip,crop] weight_decay=1"),
        ("data.batch-size=3, 4", "data.batch-size=3, 4"),
    ],
)
def test_for_markdown_escapes_formatting(text, shown):
    assert for_markdown(text) == shown


@pytest.mark.parametrize("cell", ["=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1"])
def test_for_csv_escapes_formulas(cell):
    assert for_csv(cell) == f"'{cell}"


@pytest.mark.parametrize("cell", ["-0.5", "+3e-4", "-inf", "0.1", "a=b", "", 3, -0.5, None])
def test_for_csv_keeps_numbers_and_texts(cell):
    assert for_csv(cell) == cell


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("weight_decay=1 & 5 % of #3", r"weight\_decay=1 \& 5 \% of \#3"),
        ("$x^2$ {a}~b", r"\$x\textasciicircum{}2\$ \{a\}\textasciitilde{}b"),
        (r"\input{a}", r"\textbackslash{}input\{a\}"),
        ("[1pt] *", "{[}1pt{]} {*}"),  # \\[1pt] is a distance between rows, \\* another command
        ("<a>|`x`", r"\textless{}a\textgreater{}\textbar{}\textasciigrave{}x\textasciigrave{}"),
        ("a---b ''c\" d,,e", "a-{}-{}-b '{}'c\\char34{} d,{},e"),
        (
            "a\n\\end{table}\x1b",
            r"a\textbackslash{}n\textbackslash{}end\{table\}\textbackslash{}x1b",
        ),
        ("mixup=on lr=1e-3, höher", "mixup=on lr=1e-3, höher"),
    ],
)
def test_for_latex_escapes_commands_and_ligatures(text, shown):
    assert for_latex(text) == shown
