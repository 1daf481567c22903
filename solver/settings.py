"""Settings of objectives, correspondence and optimizer. No heavy imports, for a fast `--help`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from utils.errors import OptionError
from utils.registry import Registry
from utils.settings import option, settings

OBJECTIVES = Registry(
    "objective",
    {
        "TAL": "solver.objectives.triplet",
        "TRL": "solver.objectives.triplet",
        "TRL-S": "solver.objectives.triplet",
        "InfoNCE": "solver.objectives.infonce",
        "SDM": "solver.objectives.sdm",
        "sdm": "solver.objectives.sdm",
        "itc": "solver.objectives.infonce",
        "cmpm": "solver.objectives.cmpm",
        "id": "solver.objectives.identity",
        "mlm": "solver.objectives.mlm",
        "DECL": "solver.objectives.decl",
        "CRCL": "solver.objectives.crcl",
    },
)
IRRA = frozenset({"sdm", "itc", "cmpm", "id", "mlm"})  # IRRA's names of its objectives
CORRESPONDENCES = Registry(
    "division",
    {
        "ccd": "solver.correspondence.ccd",
        "ccd-soft": "solver.correspondence.ccd",
        "all": "solver.correspondence.fixed",
        "oracle": "solver.correspondence.fixed",
        "decl": "solver.correspondence.decl",
        "crcl": "solver.correspondence.crcl",
    },
)
OPTIMIZERS = ("Adam", "SGD", "AdamW")
_COMPATIBLE = {"fp16_weights": ("Adam", "SGD"), "fp16_adam": ("Adam",)}  # AdamW's eps of 1e-8 is 0 in float16
SCHEDULES = ("cosine", "step", "exp", "poly", "linear")
WARMUPS = ("linear", "constant")

_LABEL = re.compile(r"sr[\d.]+_tau[\d.]+_margin[\d.]+_n[\d.]+")
_LOSS = "loss and division"
_OPTIMIZER = "optimizer and schedule"


@settings(_LOSS)
@dataclass(frozen=True)
class ObjectiveSettings:
    """Which objectives are trained, on which embeddings."""

    loss_names: str = option(
        "TAL",
        "TAL, TRL, TRL-S, InfoNCE, SDM; IRRA's sdm, id, mlm, itc, cmpm; DECL, CRCL or a plugin's; several joined by "
        "+; a label may follow: TAL+sr0.3_tau0.015_margin0.1_n0.2",
    )
    trained: str = option(
        "BGE+TSE",
        "embeddings that the losses are applied to, joined by +; the best checkpoint is also selected by them",
        tested=True,
    )


@settings(_LOSS)
@dataclass(frozen=True)
class TripletSettings:
    """tau: TAL's temperature, > 0. margin: m, ≥ 0."""

    tau: float = option(0.015, "TAL's temperature", above=0)
    margin: float = option(0.1, "margin m of the triplet losses", low=0)


@settings(_LOSS)
@dataclass(frozen=True)
class SoftmaxSettings:
    """temperature: of the softmax over a batch, > 0."""

    temperature: float = option(0.02, "softmax temperature of InfoNCE and SDM", above=0)


@settings(_LOSS)
@dataclass(frozen=True)
class IrraSettings:
    """Settings of IRRA's id and mlm. lr_factor: learning-rate multiplier of their new layers."""

    id_loss_weight: float = option(1.0, "weight of id", low=0, only=("id",))
    mlm_loss_weight: float = option(1.0, "weight of mlm", low=0, only=("mlm",))
    cmt_depth: int = option(4, "blocks of mlm's cross-modal transformer", low=1, only=("mlm",))
    lr_factor: float = option(5.0, "learning-rate multiplier of id's and mlm's new layers", above=0, only=("id", "mlm"))


@settings(_LOSS)
@dataclass(frozen=True)
class DeclSettings:
    """DECL's warm-up, in which every pair counts as clean. No value is published for text-to-image person re-ID."""

    decl_warmup: int = option(2, "epochs in which division decl treats all pairs as clean", low=0, only=("decl",))


@settings(_LOSS)
@dataclass(frozen=True)
class CrclSettings:
    """CRCL's rounds. Each starts from the initial weights, with `crcl_warmup` epochs that don't change the labels."""

    crcl_rounds: tuple[int, ...] = option(
        (0,),
        "division crcl: epochs of each round after its warm-up, such as 5 5 5 30; 0: a single round",
        low=0,
        only=("crcl",),
    )
    crcl_warmup: int = option(2, "epochs of each round before labels are refined", low=0, only=("crcl",))
    crcl_beta: float = option(0.8, "momentum of a pair's label at each update", low=0, high=1, only=("crcl",))


@settings(_LOSS)
@dataclass(frozen=True)
class CorrespondenceSettings:
    """Which correspondence decides how much each pair counts."""

    division: str = option(
        "ccd",
        "how much each pair counts: ccd by votes, ccd-soft by P(clean), decl, crcl; all: equally; oracle: only truly "
        "clean pairs",
        choices=CORRESPONDENCES,
    )


@settings(_LOSS)
@dataclass(frozen=True)
class MixtureSettings:
    """How CCD fits its Gaussian mixtures."""

    mixture: str = option(
        "published",
        "CCD's mixtures: coarse, fine, or published: fine for noisy_rate above 0.4 and on RSTPReid, else coarse",
        choices=("published", "coarse", "fine"),
    )


@settings(_OPTIMIZER)
@dataclass(frozen=True)
class OptimizerSettings:
    """Adam's betas are (alpha, beta); momentum is SGD's."""

    optimizer: str = option("Adam", "optimizer", choices=OPTIMIZERS)
    lr: float = option(1e-5, "learning rate of the CLIP towers", above=0)
    head_lr: float = option(1e-3, "learning rate of layers without pretrained weights", above=0)
    bias_lr_factor: float = option(2.0, "learning-rate multiplier of biases", low=0)
    momentum: float = option(0.9, "SGD's momentum", low=0, below=1, only=("SGD",))
    weight_decay: float = option(4e-5, "weight decay of weights", low=0)
    weight_decay_bias: float = option(0.0, "weight decay of biases", low=0)
    alpha: float = option(0.9, "Adam's first beta", low=0, below=1, only=("Adam", "AdamW"))
    beta: float = option(0.999, "Adam's second beta", low=0, below=1, only=("Adam", "AdamW"))


@settings(_OPTIMIZER)
@dataclass(frozen=True)
class ScheduleSettings:
    """Epochs are counted from 0. `milestones` and `gamma` are for step, `power` for exp and poly, `target_lr` (the
    final rate) for cosine and poly."""

    num_epoch: int = option(60, "epochs", low=1)
    lrscheduler: str = option("cosine", "learning-rate decay", choices=SCHEDULES)
    warmup_epochs: int = option(5, "epochs of warm-up", low=0)
    warmup_factor: float = option(0.1, "fraction of the learning rate at the start of the warm-up", low=0, high=1)
    warmup_method: str = option("linear", "shape of the warm-up", choices=WARMUPS)
    milestones: tuple[int, ...] = option((20, 50), "epochs at which step decays", low=0, only=("step",))
    gamma: float = option(0.1, "decay factor of step", above=0, only=("step",))
    target_lr: float = option(0.0, "final learning rate of cosine and poly", low=0, only=("cosine", "poly"))
    power: float = option(0.9, "base of exp and poly", above=0, only=("exp", "poly"))


def check_optimizer(optimizer: str, precision: str) -> None:
    """Check that the optimizer supports the precision, one of `model.precision.PRECISIONS` or "published".

    Raises:
        OptionError: it doesn't.
    """
    allowed = _COMPATIBLE.get(precision, OPTIMIZERS)
    if optimizer not in allowed:
        raise OptionError(f"--precision {precision}: needs --optimizer {' or '.join(allowed)}, not {optimizer}")


def labelled(loss_names: str, select_ratio: float, tau: float, margin: float, noisy_rate: float) -> str:
    """Add the published script's label for run folders to `--loss_names`, unless it has a label already.

    Without a triplet loss the label is only the noise rate.
    """
    triplets = {"TAL", "TRL", "TRL-S"}.intersection(loss_names.split("+"))
    label = f"sr{select_ratio}_tau{tau}_margin{margin}_n{noisy_rate}" if triplets else f"n{noisy_rate}"
    return f"{loss_names}+{label}" if without_label(loss_names) == loss_names else loss_names


def without_label(loss_names: str) -> str:
    """`--loss_names` without a label in the published script's format, which repeats other flags."""
    names, _, last = loss_names.rpartition("+")
    return names if names and _LABEL.fullmatch(last) else loss_names


def split_loss_names(loss_names: str) -> list[str]:
    """The objectives in `--loss_names`, without a label in the published script's format.

    Raises:
        OptionError: a name is unknown or given twice.
    """
    names = without_label(loss_names).split("+")
    for name in names:
        if name not in OBJECTIVES:
            label = "" if len(names) == 1 else ", nor a label like sr0.3_tau0.015_margin0.1_n0.2"
            raise OptionError(f"--loss_names {loss_names}: '{name}' is not one of {', '.join(OBJECTIVES)}{label}")
    if len(set(names)) < len(names):
        raise OptionError(f"--loss_names {loss_names}: an objective is listed twice")
    return names
