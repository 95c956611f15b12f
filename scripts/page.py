"""How scripts/report.py lays out what it has found: as Markdown, and as one HTML page that needs nothing else."""

import io
from collections.abc import Callable, Mapping
from html import escape
from typing import Any, NamedTuple

import numpy as np

from tricklab.cli.escape import for_markdown, for_terminal

Table = list[list[str]]
Section = tuple[
    str, Table | str
]  # a heading, or none, and a table whose first row is its head, or a command
SHOWN = 8  # configurations in a picture
COLUMNS = {"images", "right", "confidence"}  # of calibration.csv
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; color: #222; }
h1, h2, pre { overflow-wrap: anywhere; } h1 { font-size: 1.3rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
div { overflow-x: auto; } table { border-collapse: collapse; font-size: .85rem; }
th, td { padding: .3rem .6rem; text-align: left; border-bottom: 1px solid #ddd; } th { border-bottom: 2px solid #888; }
td + td, th + th { white-space: nowrap; } pre { background: #f4f4f4; padding: .6rem; white-space: pre-wrap; }
main { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 1rem; }
main { margin: 1.5rem 0; } svg { width: 100%; height: auto; }
"""


class Run(NamedTuple):
    """The results of a run, and the rows of its metrics.csv and calibration.csv."""

    results: dict[str, float]
    metrics: list[dict[str, float]]
    calibration: list[dict[str, float]]


Runs = Mapping[str, list[Run]]  # by configuration


def markdown(title: str, sections: list[Section]) -> str:
    """Lay out a report so that it can be read as it is."""
    parts = [f"# {for_markdown(title)}"]
    for heading, body in sections:
        parts += [f"## {for_markdown(heading)}"] * bool(heading)
        parts.append(f"    {for_terminal(body)}" if isinstance(body, str) else table(body))
    return "\n\n".join(parts) + "\n"


def table(rows: Table, trusted: bool = False) -> str:
    """Lay out rows, the first of which is the head; what is not `trusted` is shown as it is."""
    escaped = (lambda text: text.replace("|", "\\|")) if trusted else for_markdown
    rows = [[escaped(text) for text in line] for line in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(text.ljust(w) for text, w in zip(line, widths, strict=True)) + " |"
        for line in rows
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def shown(text: str) -> str:
    """Return text for HTML, without characters that it can't hold."""
    return escape(for_terminal(text))


def html(title: str, sections: list[Section], pictures: list[str]) -> str:
    """Lay out a report as a page; all text is escaped, pictures are SVG."""
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    )
    head += f"<title>{shown(title)}</title><style>{STYLE}</style>"
    first, *others = map(html_section, sections)
    parts = [
        f"<!doctype html><html lang=en><head>{head}</head><body>",
        f"<h1>{shown(title)}</h1>",
        first,
    ]
    return "\n".join([*parts, "<main>", *pictures, "</main>", *others, "</body></html>\n"])


def html_section(section: Section) -> str:
    heading, body = (f"<h2>{shown(section[0])}</h2>" if section[0] else ""), section[1]
    if isinstance(body, str):
        return f"{heading}<pre>{shown(body)}</pre>"
    rows = ["".join(f"<td>{shown(text)}</td>" for text in line) for line in body]
    rows[0] = rows[0].replace("td>", "th>")
    return f"{heading}<div><table>{''.join(f'<tr>{row}</tr>' for row in rows)}</table></div>"


def pictures(
    configurations: Runs, effects: Mapping[str, Mapping[str, Any]], metric: str
) -> list[str]:
    """Draw the effects, and of the best configurations the curves, accuracy against calibration and the rates.

    `effects` holds, for each value of a key, a mean and half the width of its interval.
    """
    found = {plain(label): runs for label, runs in configurations.items() if runs}
    scores = {
        label: np.mean([run.results.get("val/acc") or 0.0 for run in runs])
        for label, runs in found.items()
    }
    shown = {
        label: found[label] for label in sorted(found, key=lambda label: -scores[label])[:SHOWN]
    }
    best = f", best {SHOWN} of {len(found)}" if len(found) > SHOWN else ""
    drawn: list[tuple[str, Callable[..., None], Any]] = [
        (f"accuracy on validation, mean ± sd over seeds{best}", draw_curves, shown),
        (f"{metric}, mean and 95 % interval over all else", draw_effects, effects),
        (f"accuracy against calibration error on the test set{best}", draw_calibration, shown),
        (f"accuracy at each confidence on the test set{best}", draw_reliability, shown),
        (f"learning rate{best}", draw_rates, shown),
    ]
    return [picture(*of) for of in drawn if shown and of[2]]


def plain(text: str) -> str:
    """Return text that matplotlib draws as it is: neither mathematics nor control characters."""
    return for_terminal(text).replace("$", r"\$")


def picture(title: str, draw: Callable[[Any, Any], None], what: Any) -> str:
    """Return a picture as an SVG element that keeps its text as text."""
    from matplotlib import pyplot

    with pyplot.rc_context({"svg.fonttype": "none", "svg.hashsalt": title, "font.size": 9}):
        figure, axes = pyplot.subplots(figsize=(5, 3.6), layout="constrained")
        draw(axes, what)
        axes.set_title(plain(title), fontsize=9)
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[1]:
            figure.legend(loc="outside lower left", fontsize=8, frameon=False)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
        pyplot.close(figure)
    return file.getvalue()[file.getvalue().index("<svg") :]


def line_style(n: int) -> dict[str, Any]:
    """Return a style by which the n-th curve is seen where others lie on it: later ones are thinner and dashed."""
    dashes = ["-", "--", ":", "-."][n % 4]
    return {"linestyle": dashes, "linewidth": 3.0 - 0.25 * n, "alpha": 0.8}


def draw_curves(axes: Any, configurations: Runs) -> None:
    for n, (label, runs) in enumerate(configurations.items()):
        of_epoch: dict[float, list[float]] = {}
        rows = [row for run in runs for row in run.metrics if {"val/acc", "epoch"} <= row.keys()]
        for row in rows:
            of_epoch.setdefault(row["epoch"] + 1, []).append(row["val/acc"])
        points = [
            (epoch, np.mean(x), np.std(x, ddof=min(1, len(x) - 1)))
            for epoch, x in sorted(of_epoch.items())
        ]
        epochs, means, spread = np.array(points).reshape(-1, 3).T
        axes.plot(epochs, means, label=label, **line_style(n))
        axes.fill_between(epochs, means - spread, means + spread, alpha=0.2)
    axes.set_xlabel("epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)


def draw_effects(axes: Any, effects: Mapping[str, Mapping[str, Any]]) -> None:
    for n, (key, of_value) in enumerate(effects.items()):
        known = {plain(f"{key}={value}"): s for value, s in of_value.items() if s.n}
        halves = np.nan_to_num([s.half for s in known.values()])  # of a single run there is none
        axes.errorbar(
            [s.mean for s in known.values()],
            list(known),
            xerr=halves,
            fmt="o",
            capsize=3,
            color=f"C{n}",
        )
    axes.invert_yaxis()


def draw_calibration(axes: Any, configurations: Runs) -> None:
    for label, runs in configurations.items():
        points = [
            (r.results["test/ece"], r.results["test/acc"])
            for r in runs
            if {"test/ece", "test/acc"} <= r.results.keys()
        ]
        axes.plot(*np.reshape(points, (-1, 2)).T, "o", alpha=0.6, label=label)
    axes.set(xlabel="expected calibration error (lower is better)", ylabel="accuracy")


def draw_reliability(axes: Any, configurations: Runs) -> None:
    """Draw accuracy over mean confidence in each bin, all seeds together, and as steps the share of the images."""
    axes.plot([0, 1], [0, 1], "--", color="grey")
    for n, (label, runs) in enumerate(configurations.items()):
        of_bin: dict[int, Any] = {}
        for i, row in [pair for run in runs for pair in enumerate(run.calibration)]:
            if row.keys() >= COLUMNS:
                values = np.array([row[column] for column in ("images", "right", "confidence")])
                of_bin[i] = of_bin.get(i, 0) + values
        images, right, confidence = np.array([of_bin[i] for i in sorted(of_bin)]).reshape(-1, 3).T
        some, style = images > 0, {"alpha": 0.6, "color": f"C{n}"}
        axes.plot(
            confidence[some] / images[some], right[some] / images[some], "o-", label=label, **style
        )
        axes.stairs(images / max(images.sum(), 1), np.linspace(0, 1, len(images) + 1), **style)
    axes.set(xlabel="confidence", ylabel="accuracy; steps: share of the images")


def draw_rates(axes: Any, configurations: Runs) -> None:
    for n, (label, runs) in enumerate(configurations.items()):
        rows = [row for row in runs[0].metrics if {"lr", "step"} <= row.keys()]
        points = [(row["step"], row["lr"]) for row in rows]
        axes.plot(*np.reshape(points, (-1, 2)).T, label=label, **line_style(n))
    axes.set_xlabel("optimizer step")
    axes.xaxis.get_major_locator().set_params(integer=True)
