"""The flags of train.py: one table from which the parser and all checks are made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

DATASETS = ("CUHK-PEDES", "ICFG-PEDES", "RSTPReid", "SynthPEDES")
LOSSES = ("TAL", "TRL", "TRL-S", "InfoNCE", "SDM")


@dataclass(frozen=True)
class Flag:
    """One flag: its type is its default's; a tuple takes several values.

    Attributes:
        low, high: inclusive bounds; `above` and `below` exclude their end.
    """

    name: str
    default: Any
    help: str
    choices: tuple[str, ...] = ()
    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    length: int | None = None

    @property
    def bounds(self) -> str:
        """The allowed range in words, "" where everything is allowed."""
        words = [
            f"at least {self.low:g}" if self.low > -math.inf else "",
            f"above {self.above:g}" if self.above > -math.inf else "",
            f"at most {self.high:g}" if self.high < math.inf else "",
            f"below {self.below:g}" if self.below < math.inf else "",
        ]
        return " and ".join(word for word in words if word)


GROUPS: dict[str, list[Flag]] = {
    "the run": [
        Flag("name", "baseline", "a word for the run folder's name"),
        Flag("output_dir", "logs", "where run folders are made"),
        Flag("seed", 1, "of weights, order, augmentation and division", low=0, high=2**63 - 1),
        Flag("device", "auto", "auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:N or mps"),
        Flag(
            "precision",
            "fp32",
            "fp32; bf16 or fp16 autocast; fp16_weights, the published code's: weights and Adam in float16, unscaled; "
            "fp16_adam: Adam rounds as that one, the rest is fp32; or published: fp16_weights on CUDA, else fp32",
            choices=("fp32", "bf16", "fp16", "fp16_weights", "fp16_adam", "published"),
        ),
        Flag("log_period", 100, "training steps between two lines of the log", low=1),
        Flag("eval_period", 1, "epochs between two validations", low=1),
        Flag("val_dataset", "val", "the split that chooses the best checkpoint", choices=("val", "test")),
        Flag(
            "record_test", False, "evaluate the test split in every validation too; it is recorded and chooses nothing"
        ),
        Flag("resume_ckpt_file", "", "continue from this checkpoint, in its run folder (not in a configuration)"),
        Flag("test", False, "evaluate the starting weights and stop"),
    ],
    "data": [
        Flag(
            "dataset_name",
            "CUHK-PEDES",
            "CUHK-PEDES, ICFG-PEDES, RSTPReid, SynthPEDES, or your annotation file",
        ),
        Flag("root_dir", "data", "the folder that holds the data set's folder"),
        Flag("image_cache", "", "folder for decoded images; default: beside the data, else the user's cache folder"),
        Flag(
            "on_bad_image",
            "error",
            "a training image that can't be read: stop before training, or leave its pairs out",
            ("error", "skip"),
        ),
        Flag("noisy_rate", 0.2, "share of captions that change places", low=0, high=1),
        Flag("noisy_file", "", "noise index (.npy); default: noiseindex/<dataset_name>_<noisy_rate>.npy, else drawn"),
        Flag("exclude", "", "CSV of training pairs to leave out, marked by hand; python -m tools.audit writes one"),
        Flag("batch_size", 128, "pairs in a training batch; several processes share them", low=2),
        Flag(
            "grad_accum",
            1,
            "parts in which a batch is encoded, to save memory; the loss still compares all its pairs (tse_bn frozen)",
            low=1,
        ),
        Flag("test_batch_size", 512, "images or captions encoded at a time in evaluation", low=1),
        Flag("num_workers", 8, "processes that load data for each that trains; 0 loads in this one", low=0),
        Flag("sampler", "random", "order of the training pairs", choices=("random", "identity")),
        Flag("num_instance", 4, "pairs of each identity in a batch (sampler identity)", low=1),
        Flag("img_aug", False, "crop and erase training images"),
        Flag("txt_aug", False, "mask, replace and remove words of training captions"),
    ],
    "model": [
        Flag(
            "pretrain_choice",
            "ViT-B/16",
            "ViT-B/16, ViT-B/32, ViT-L/14 (fetched once), tiny (built in), or a file",
        ),
        Flag(
            "activation",
            "auto",
            "of both towers: quick_gelu, gelu or auto (from the configuration beside the weights, else QuickGELU)",
            ("auto", "quick_gelu", "gelu"),
        ),
        Flag("img_size", (384, 128), "height and width of the images", low=1, length=2),
        Flag("stride_size", 16, "pixels between two patches", low=1),
        Flag("text_length", 77, "tokens of a caption; text positions are cut or interpolated to it", low=3),
        Flag("vocab_size", 49408, "tokens there are", low=1),
        Flag("select_ratio", 0.3, "share R of tokens that TSE selects", above=0, below=1),
        Flag("tse_bn", "frozen", "TSE BatchNorm in training: frozen as for the paper, or batch", ("frozen", "batch")),
        Flag("tse_head", "mlp", "FC + MLP on the selected tokens, or none (table 7's TSE′)", ("mlp", "none")),
        Flag("grad_checkpointing", False, "compute activations again in the backward pass: less memory, more time"),
        Flag("compile", False, "torch.compile the towers: a minute at the start; for GPUs (needs a C++ compiler)"),
        Flag("tse_pool", "max", "pooling of the selected tokens (table 7)", ("max", "avg", "topk10")),
    ],
    "loss and division": [
        Flag("loss_names", "TAL", f"one of {', '.join(LOSSES)}; a label may follow: TAL+sr0.3_tau0.015_margin0.1_n0.2"),
        Flag("tau", 0.015, "TAL's temperature", above=0),
        Flag("margin", 0.1, "margin m of the triplet losses", low=0),
        Flag("temperature", 0.02, "softmax temperature of InfoNCE and SDM", above=0),
        Flag(
            "trained",
            "BGE+TSE",
            "the embeddings whose losses are trained; the best checkpoint is chosen by them too",
            ("BGE+TSE", "BGE"),
        ),
        Flag(
            "division",
            "ccd",
            "which pairs train: by CCD, all, or (an oracle) only the truly clean",
            ("ccd", "all", "oracle"),
        ),
        Flag(
            "mixture",
            "published",
            "CCD's mixtures: coarse, fine, or published: fine for noisy_rate above 0.4 and on RSTPReid, else coarse",
            ("published", "coarse", "fine"),
        ),
    ],
    "optimizer and schedule": [
        Flag("optimizer", "Adam", "optimizer", choices=("Adam", "SGD", "AdamW")),
        Flag("lr", 1e-5, "learning rate of the CLIP towers", above=0),
        Flag("bias_lr_factor", 2.0, "times lr for biases", low=0),
        Flag("momentum", 0.9, "SGD's momentum", low=0, below=1),
        Flag("weight_decay", 4e-5, "of weights", low=0),
        Flag("weight_decay_bias", 0.0, "of biases", low=0),
        Flag("alpha", 0.9, "Adam's first beta", low=0, below=1),
        Flag("beta", 0.999, "Adam's second beta", low=0, below=1),
        Flag("num_epoch", 60, "epochs", low=1),
        Flag("lrscheduler", "cosine", "decay of the rate", choices=("cosine", "step", "exp", "poly", "linear")),
        Flag("warmup_epochs", 5, "epochs of warm-up", low=0),
        Flag("warmup_factor", 0.1, "share of the rate that the warm-up starts with", low=0, high=1),
        Flag("warmup_method", "linear", "warm-up", choices=("linear", "constant")),
        Flag("milestones", (20, 50), "epochs at which step decays", low=0),
        Flag("gamma", 0.1, "step's factor", above=0),
        Flag("target_lr", 0.0, "rate at the end of cosine and poly", low=0),
        Flag("power", 0.9, "base of exp and poly", above=0),
    ],
}
FLAGS: dict[str, Flag] = {flag.name: flag for flags in GROUPS.values() for flag in flags}
# Flags of the published code that do nothing to RDE there: taken, checked, kept in the configuration where given.
WITHOUT_EFFECT: dict[str, Flag] = {
    flag.name: flag
    for flag in (
        Flag("lr_factor", 5.0, "factor of IRRA's learning rate for its new layers"),
        Flag("cmt_depth", 4, "layers of IRRA's cross-modal transformer"),
        Flag("masked_token_rate", 0.8, "share of tokens masked for IRRA's language modelling"),
        Flag("masked_token_unchanged_rate", 0.1, "share of those left as they are"),
        Flag("local_rank", 0, "the process's number on its machine, which the launcher says"),
    )
}
# What else the authors' configs.yaml holds: how their program was started.
NAMESPACE = {"distributed", "training", "resume"}
# Files and folders, kept absolute; where NAMES_TOO are no files they are names.
PATHS = ("root_dir", "output_dir", "image_cache", "noisy_file", "exclude", "pretrain_choice", "dataset_name")
NAMES_TOO = ("pretrain_choice", "dataset_name")
# What test.py takes from a run's configuration.
READ_BY_TEST = {
    "dataset_name",
    "root_dir",
    "image_cache",
    "img_size",
    "stride_size",
    "text_length",
    "vocab_size",
    "activation",
    "select_ratio",
    "tse_head",
    "tse_pool",
    "test_batch_size",
    "num_workers",
    "device",
    "precision",
}
# What changes no number beyond a device's rounding: a run may be continued with other values.
FREE = {
    *WITHOUT_EFFECT,
    "output_dir",
    "root_dir",
    "image_cache",
    "compile",
    "device",
    "grad_accum",
    "grad_checkpointing",
    "log_period",
    "test_batch_size",
    "num_workers",
    "resume_ckpt_file",
}
