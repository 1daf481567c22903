"""The rows of the paper's tables and figures: each is a configuration and the similarity to report."""

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
        config: path in configs/, without .yaml.
        similarity: the similarity to report: BGE+TSE, BGE or TSE.
        paper: the paper's numbers.
        target: another data set to test on; "" for the training data set.
        small: run on SynthPEDES: its recipe, with this row's changes to configs/base.yaml.
        start: report the starting weights, before training.
        precision: `--precision`; "" for the configuration's.
        noisy_rate: a noise rate other than the configuration's.
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
    noisy_rate: float | None = None

    @cached_property
    def _options(self) -> dict[str, Any]:
        noise = {} if self.noisy_rate is None else {"noisy_rate": self.noisy_rate}
        return {**defaults(), **read_config(CONFIGS / f"{self.config}.yaml"), **noise}

    @property
    def dataset(self) -> str:
        """The training data set."""
        return SYNTH if self.small else self._options["dataset_name"]

    @property
    def noise(self) -> float:
        """The noise rate, 0 to 1."""
        return self._options["noisy_rate"]

    @property
    def trained(self) -> str:
        """The similarity that selects the best checkpoint."""
        return self._options["trained"]

    @property
    def slug(self) -> str:
        """Folder of the row's runs; rows that share a run have the same."""
        suffix = f"_{self.precision}" if self.precision else ""
        suffix += "" if self.noisy_rate is None else f"_n{self.noisy_rate:g}"
        if not self.small:
            return self.config + suffix
        return f"{SYNTH}/{self.config.replace(self._options['dataset_name'], SYNTH)}{suffix}"

    @property
    def flags(self) -> list[str]:
        """The row's flags for train.py."""
        overrides = ["--precision", self.precision] if self.precision else []
        if not self.small:
            overrides += [] if self.noisy_rate is None else ["--noisy_rate", f"{self.noisy_rate:g}"]
            return ["--config", str(CONFIGS / f"{self.config}.yaml"), *overrides]
        base = {**defaults(), **read_config(CONFIGS / "base.yaml")}
        flags = ["--config", str(CONFIGS / f"{SYNTH}.yaml"), "--noisy_rate", f"{self.noise:g}"]
        for name, value in self._options.items():
            if value != base[name] and name not in ("dataset_name", "noisy_rate"):
                flags += [f"--{'' if value else 'no-'}{name}"] if isinstance(value, bool) else [f"--{name}", str(value)]
        return flags + overrides

    def on_synthpedes(self) -> Row:
        """The same row in miniature, without numbers of the paper."""
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
            setting = f"{dataset}_{noise:g}"
            rows.append(Row("rde", "RDE", f"main/{setting}", paper=paper.main_numbers(dataset, noise, "RDE")))
            if noise:
                for name, title in (("clip-c", "CLIP-C"), ("decl", "DECL")):
                    numbers = paper.main_numbers(dataset, noise, title)
                    rows.append(Row(name, title, f"{name}/{setting}", "BGE", numbers))
            rows.append(Row("irra", "IRRA", f"irra/{setting}", "BGE", paper.main_numbers(dataset, noise, "IRRA")))
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
    """One row per value of a flag, the paper's own included."""
    configs = {value: f"sweeps/{flag}_{value:g}" for value in values} | {paper_value: "main/CUHK-PEDES_0.5"}
    return [Row(f"{value:g}", f"{symbol} = {value:g}", configs[value]) for value in sorted(configs)]


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
    """The study of docs/arithmetic.md: the same runs at every precision."""
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
    """The study of docs/results.md: every method at every noise rate."""
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
    """The row with its configuration for a noise rate, or with the one for 50% if there is none."""
    if (CONFIGS / f"{row.config}_{noise:g}.yaml").is_file():
        return replace(row, config=f"{row.config}_{noise:g}")
    return replace(row, config=f"{row.config}_0.5", noisy_rate=noise)


@dataclass(frozen=True)
class Table:
    """A table or a figure of the paper, or one of our own.

    Attributes:
        extra: also report this one of `tools.reproduce.report.EXTRAS`.
    """

    title: str
    rows: list[Row]
    extra: str = ""


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
