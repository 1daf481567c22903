"""Plot R1 against the noise rate, one line per method, and save the plotted numbers.

    python -m tools.reproduce.noise logs/reproduce/table_methods_SynthPEDES_3_seeds.json docs/methods.png

The numbers are saved next to the figure (docs/methods.json), which can be redrawn from them.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt

from tools.visualize.curves import line_style
from utils.errors import DataError, OptionError
from utils.figures import legend_below, save
from utils.files import write_text
from utils.options import command_parser, parse
from utils.program import run_program

_PANELS = {"best by validation": "best epoch by validation", "last": "last epoch"}


def main(argv: Sequence[str]) -> None:
    """Draw the figure."""
    parser = command_parser("tools.reproduce.noise", __doc__)
    parser.add_argument("table", help="report of tools.reproduce, or the saved numbers of such a figure (.json)")
    parser.add_argument("figure", help="file to write: .png, .svg or .pdf")
    args = parse(parser, argv)
    table, figure = Path(args["table"]), Path(args["figure"])
    numbers = figure.with_suffix(".json")
    try:
        text = table.read_text(encoding="utf-8")
        rows = [_plotted(row) for row in json.loads(text)["rows"]]
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{table} is not a report by tools.reproduce") from None
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    content = f'{{"rows": [\n{lines}\n]}}\n'
    if numbers.resolve() == table.resolve() and content != text:
        raise OptionError(f"{figure}: its numbers would replace the report {table}, give it another name or folder")
    if not draw_over_noise(rows, figure):
        raise DataError(f"{table} has no row with runs at two noise rates")
    write_text(numbers, content)


def _plotted(row: dict[str, Any]) -> dict[str, Any]:
    """The plotted numbers of a report's row, and its method's accuracy in finding noisy pairs, to four decimals."""
    results = {choice: {"R1": _rounded(row["results"][choice]["R1"])} for choice in _PANELS if row["results"]}
    detection = {name: _rounded(value) for name, value in row.get("knowledge", {}).items()}
    plotted = {"title": row["title"], "noise": row["noise"], "results": results}
    return plotted | {"knowledge": detection} if detection else plotted


def _rounded(statistics: dict[str, Any]) -> dict[str, Any]:
    spread = statistics["spread"]
    return {
        "values": [round(value, 4) for value in statistics["values"]],
        "mean": round(statistics["mean"], 4),
        "spread": None if spread is None else round(spread, 4),
    }


def draw_over_noise(summaries: Sequence[dict], file: Path) -> bool:
    """Plot each method's R1 at the best and at the last epoch, as mean and standard deviation over seeds.

    Returns:
        Whether any method has runs at two or more noise rates.
    """
    methods: dict[str, dict[float, dict]] = defaultdict(dict)
    for summary in summaries:
        if summary["results"]:
            methods[summary["title"]][summary["noise"]] = summary["results"]
    methods = {title: by_noise for title, by_noise in methods.items() if len(by_noise) > 1}
    if not methods:
        return False
    figure, grid = plt.subplots(1, 2, figsize=(8, 4), sharey=True, layout="constrained")
    for axes, (choice, heading) in zip(grid, _PANELS.items(), strict=True):
        for number, (title, by_noise) in enumerate(methods.items()):
            r1 = {noise: results[choice]["R1"] for noise, results in sorted(by_noise.items())}
            spread = [value["spread"] or 0 for value in r1.values()]
            x, mean = [100 * noise for noise in r1], [value["mean"] for value in r1.values()]
            axes.errorbar(x, mean, spread, label=title, markersize=4, capsize=2, **line_style(number))
        axes.set(title=heading, xlabel="noise rate (%)", ylim=(0, None))
        axes.grid(alpha=0.3)
    grid[0].set_ylabel("R1 on test (%)")
    legend_below(figure, grid)
    save(figure, file)
    return True


if __name__ == "__main__":
    run_program(main)
