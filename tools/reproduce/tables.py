"""The rows of the paper's tables and figures: each is a configuration, and which similarity of its run to read."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import permutations
from pathlib import Path
from typing import Any

import options  # noqa: F401  (declares all flags)
from tools.reproduce import paper
from utils.options import defaults, read_config

CONFIGS = Path(__file__).parents[2] / "configs"
SYNTH = "SynthPEDES"


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        name: for `--row`.
        config: path in configs/, without the ending.
        similarity: of the run's table: BGE+TSE, BGE or TSE.
        paper: what the paper has.
        target: another data set that the run is tested on; "" for its own.
        small: run it on SynthPEDES: its recipe, with what this row's configuration changes in configs/base.yaml.
        start: read the starting weights of its run, before training.
        precision: the run's arithmetic; "" for the configuration's.
        at: a noise rate other than the configuration's.
    """

    name: str
    title: str
    config: str
    similarity: str = "BGE+TSE"
    paper: paper.Numbers = field(default_factory=dict)
    target: str = ""
    small: bool = False
    start: bool = False
    precision: str = ""
    at: float | None = None

    @cached_property
    def _options(self) -> dict[str, Any]:
        at = {} if self.at is None else {"noisy_rate": self.at}
        return {**defaults(), **read_config(CONFIGS / f"{self.config}.yaml"), **at}

    @property
    def dataset(self) -> str:
        """The data set it trains on."""
        return SYNTH if self.small else self._options["dataset_name"]

    @property
    def noise(self) -> float:
        """The noise rate, 0 to 1."""
        return self._options["noisy_rate"]

    @property
    def trained(self) -> str:
        """The similarity that chooses its run's best checkpoint."""
        return self._options["trained"]

    @property
    def slug(self) -> str:
        """The folder of its runs; rows that are read off the same run have the same."""
        more = f"_{self.precision}" if self.precision else ""
        more += "" if self.at is None else f"_n{self.at:g}"
        if not self.small:
            return self.config + more
        return f"{SYNTH}/{self.config.replace(self._options['dataset_name'], SYNTH)}{more}"

    @property
    def flags(self) -> list[str]:
        """What train.py is given."""
        more = ["--precision", self.precision] if self.precision else []
        if not self.small:
            more += [] if self.at is None else ["--noisy_rate", f"{self.at:g}"]
            return ["--config", str(CONFIGS / f"{self.config}.yaml"), *more]
        base = {**defaults(), **read_config(CONFIGS / "base.yaml")}
        flags = ["--config", str(CONFIGS / f"{SYNTH}.yaml"), "--noisy_rate", f"{self.noise:g}"]
        for name, value in self._options.items():
            if value != base[name] and name not in ("dataset_name", "noisy_rate"):
                flags += [f"--{'' if value else 'no-'}{name}"] if isinstance(value, bool) else [f"--{name}", str(value)]
        return flags + more

    def on_synthpedes(self) -> Row:
        """The same kind of row in small; the paper has no such numbers."""
        if self.dataset == SYNTH:
            return self
        target = f"{SYNTH}-far" if self.target else ""
        title = f"{SYNTH} → {target}" if target else self.title
        return replace(self, title=title, paper={}, target=target, small=True)


_DATASETS = ("CUHK-PEDES", "ICFG-PEDES", "RSTPReid")
_NOISE = (0.0, 0.2, 0.5, 0.8)


def _main() -> list[Row]:
    rows = []
    for dataset in _DATASETS:
        for noise in _NOISE:
            place = f"{dataset}_{noise:g}"
            rows.append(Row("rde", "RDE", f"main/{place}", paper=paper.main_numbers(dataset, noise, "RDE")))
            if noise:
                for name, title in (("clip-c", "CLIP-C"), ("decl", "DECL")):
                    numbers = paper.main_numbers(dataset, noise, title)
                    rows.append(Row(name, title, f"{name}/{place}", "BGE", numbers))
            rows.append(Row("irra", "IRRA", f"irra/{place}", "BGE", paper.main_numbers(dataset, noise, "IRRA")))
    return rows


def _ablation(table: int, noise: float) -> list[Row]:
    def row(number: int, name: str, title: str, config: str, similarity: str = "BGE+TSE") -> Row:
        return Row(name, title, f"{config}_{noise:g}", similarity, paper.ablation(table, number))

    return [
        row(1, "tal", "TAL", "main/CUHK-PEDES"),
        row(2, "trl", "TRL", "ablation/trl"),
        row(3, "trl-s", "TRL-S", "ablation/trl-s"),
        row(4, "sdm", "SDM", "ablation/sdm"),
        row(5, "tse", "TAL, TSE alone in inference", "main/CUHK-PEDES", "TSE"),
        row(6, "bge", "TAL, BGE alone in inference", "main/CUHK-PEDES", "BGE"),
        row(7, "no-ccd", "TAL without CCD", "ablation/no-ccd"),
    ]


def _token_selection() -> list[Row]:
    rows = []
    for head, title in (("tse-prime", "TSE′"), ("tse", "TSE")):
        for pooling in ("avg", "topk10", "max"):
            name = f"{head}-{pooling}"
            config = "main/CUHK-PEDES_0.5" if name == "tse-max" else f"tse/{name}"
            numbers = paper.token_selection("TSE" if head == "tse" else "TSE'", pooling)
            rows.append(Row(name, f"{title}, {pooling}", config, paper=numbers))
    return rows


def _sweep(flag: str, symbol: str, values: tuple[float, ...], paper_value: float) -> list[Row]:
    """One flag's values, the paper's own among them."""
    place = {value: f"sweeps/{flag}_{value:g}" for value in values} | {paper_value: "main/CUHK-PEDES_0.5"}
    return [Row(f"{value:g}", f"{symbol} = {value:g}", place[value]) for value in sorted(place)]


def _cross_domain() -> list[Row]:
    return [
        Row(f"{a}-to-{b}", f"{a} → {b}", f"main/{a}_0", paper=paper.cross_domain(a, b), target=b)
        for a, b in permutations(_DATASETS, 2)
    ]


def _synthpedes() -> list[Row]:
    """The README's table."""
    ablation = {row.name: row for row in _ablation(2, 0.5)}
    return [
        Row("start", "the pretrained CLIP, before training", SYNTH, "BGE", start=True),
        Row("rde", "RDE: TAL with CCD", SYNTH),
        ablation["no-ccd"].on_synthpedes(),
        ablation["trl"].on_synthpedes(),
        Row("infonce", "InfoNCE without CCD", "methods/infonce_0.5").on_synthpedes(),
        Row("sdm", "SDM without CCD", "methods/sdm_0.5").on_synthpedes(),
        Row("clean", "RDE, no noise", "main/CUHK-PEDES_0").on_synthpedes(),
    ]


def _arithmetic() -> list[Row]:
    """docs/arithmetic.md's study: the same runs in every arithmetic."""
    titles = {
        "fp32": "float32",
        "bf16": "bf16 products",
        "fp16": "float16 products, scaled loss",
        "fp16_weights": "float16 weights and Adam, as published",
        "fp16_adam": "float16 Adam alone",
    }
    return [
        Row(name, title, f"main/CUHK-PEDES_{noise:g}", precision=name)
        for noise in (0.0, 0.5)
        for name, title in titles.items()
    ]


def _methods() -> list[Row]:
    """docs/results.md's study: every method at every noise."""
    methods = {
        "rde": ("RDE", "main/CUHK-PEDES", "BGE+TSE"),
        "rde-soft": ("RDE, soft labels", "methods/rde-soft", "BGE+TSE"),
        "irra": ("IRRA", "irra/CUHK-PEDES", "BGE"),
        "decl": ("DECL", "decl/CUHK-PEDES", "BGE"),
        "crcl": ("CRCL", "crcl/CUHK-PEDES", "BGE"),
        "clip-c": ("CLIP-C", "clip-c/CUHK-PEDES", "BGE"),
        "infonce": ("InfoNCE without CCD", "methods/infonce", "BGE+TSE"),
        "sdm": ("SDM without CCD", "methods/sdm", "BGE+TSE"),
        "no-ccd": ("TAL without CCD", "ablation/no-ccd", "BGE+TSE"),
    }
    rows = [
        _at(noise, Row(name, title, config, similarity))
        for noise in _NOISE
        for name, (title, config, similarity) in methods.items()
    ]
    others = [(dataset, noise) for dataset in _DATASETS[1:] for noise in _NOISE[1:]]
    return rows + [Row("crcl", "CRCL", f"crcl/{dataset}_{noise:g}", "BGE") for dataset, noise in others]


def _at(noise: float, row: Row) -> Row:
    """The row with its configuration for that noise, or where there is none with the one for half of the captions."""
    if (CONFIGS / f"{row.config}_{noise:g}.yaml").is_file():
        return replace(row, config=f"{row.config}_{noise:g}")
    return replace(row, config=f"{row.config}_0.5", at=noise)


@dataclass(frozen=True)
class Table:
    """A table or a figure of the paper, or one of our own.

    Attributes:
        more: what else is reported of each row: one of `tools.reproduce.report.MORE`.
    """

    title: str
    rows: list[Row]
    more: str = ""


_MAIN = Table("RDE, DECL, IRRA and CLIP-C on three data sets, 0 to 80% noise (tables 1 and 3)", _main())
TABLES = {
    "1": _MAIN,
    "2": Table("ablation on CUHK-PEDES, 50% noise (table 2)", _ablation(2, 0.5)),
    "3": _MAIN,
    "7": Table("token selection on CUHK-PEDES, 50% noise (table 7)", _token_selection()),
    "8": Table("ablation on CUHK-PEDES, 80% noise (table 8)", _ablation(8, 0.8)),
    "figure3": Table(
        "triplet losses without CCD on CUHK-PEDES, 50% noise (figure 3)",
        [Row(loss.lower(), loss, f"figure3/{loss.lower()}", paper=paper.figure3(loss)) for loss in ("TRL", "TRL-S")],
    ),
    "figure4-margin": Table("the margin m (figure 4)", _sweep("margin", "m", (0.05, 0.15, 0.2, 0.25), 0.1)),
    "figure4-tau": Table("the temperature τ (figure 4)", _sweep("tau", "τ", (0.005, 0.01, 0.02, 0.03, 0.05), 0.015)),
    "figure6": Table("the selection ratio R (figure 6)", _sweep("select_ratio", "R", (0.1, 0.2, 0.4, 0.5, 0.6), 0.3)),
    "cross-domain": Table("trained on one data set, tested on another (ICL, CVPR 2025)", _cross_domain()),
    "arithmetic": Table("what float16 does to Adam (docs/arithmetic.md)", _arithmetic(), "displacement"),
    "methods": Table("every method under 0 to 80% noise (docs/results.md)", _methods(), "knowledge"),
    "synthpedes": Table("the method's claims on the built-in data set, 50% noise", _synthpedes()),
}
