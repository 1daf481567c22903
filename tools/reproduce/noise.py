"""R1 against the share of wrong captions, a line a method: of a report's .json.

python -m tools.reproduce.noise TABLE.json FIGURE.png
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from matplotlib import pyplot as plt

from tools.visualize.curves import line_style
from utils.errors import DataError
from utils.figures import legend_below, save
from utils.options import command_parser, parse
from utils.program import run_program

_PANELS = {"best by validation": "best epoch by validation", "last": "last epoch"}


def main(argv: Sequence[str]) -> None:
    """Draw the figure."""
    parser = command_parser("tools.reproduce.noise", __doc__)
    parser.add_argument("table", help="report written by tools.reproduce (.json)")
    parser.add_argument("figure", help="file to write")
    args = parse(parser, argv)
    try:
        rows = json.loads(Path(args["table"]).read_text(encoding="utf-8"))["rows"]
        drawn = draw_over_noise(rows, Path(args["figure"]))
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{args['table']} is not a report by tools.reproduce") from None
    if not drawn:
        raise DataError(f"{args['table']} has no row with runs at two noise rates")


def draw_over_noise(summaries: Sequence[dict], file: Path) -> bool:
    """Draw each title's mean R1 and its standard deviation over seeds, as it was best and in the end.

    Returns whether a row had runs at two shares at least.
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
            found = {noise: results[choice]["R1"] for noise, results in sorted(by_noise.items())}
            spread = [of["spread"] or 0 for of in found.values()]
            x, mean = [100 * noise for noise in found], [of["mean"] for of in found.values()]
            axes.errorbar(x, mean, spread, label=title, markersize=4, capsize=2, **line_style(number))
        axes.set(title=heading, xlabel="noise rate (%)", ylim=(0, None))
        axes.grid(alpha=0.3)
    grid[0].set_ylabel("R1 on test (%)")
    legend_below(figure, grid)
    save(figure, file)
    return True


if __name__ == "__main__":
    run_program(main)
