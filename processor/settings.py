"""Settings of the run itself. No heavy imports, for a fast `--help`."""

from __future__ import annotations

from dataclasses import dataclass

from utils.settings import option, settings

_RUN = "the run"
SAVED = ("similarity.safetensors", "ranking.csv", "embeddings.safetensors")  # files of test.py --save


@dataclass(frozen=True)
class RerankSettings:
    """Settings of k-reciprocal re-ranking (Zhong et al., CVPR 2017).

    k1 and k2 are the paper's. Its weight λ of the original distance, for image queries, is 0.3; for captions a larger
    one was better on SynthPEDES's validation split.

    Attributes:
        k1: number of nearest neighbours checked for reciprocity, at least 1.
        k2: number of neighbours, including itself, over which encodings are averaged, at least 1.
        share: λ, 0 to 1.
    """

    k1: int = 20
    k2: int = 6
    share: float = 0.8


@settings(_RUN)
@dataclass(frozen=True)
class FolderSettings:
    """Name and location of the run folder."""

    name: str = option("baseline", "name of the run, used in its folder's name")
    output_dir: str = option("logs", "folder for run folders", path=True, resumable=True)


@settings(_RUN)
@dataclass(frozen=True)
class LoopSettings:
    """Settings of the training loop."""

    seed: int = option(1, "random seed of initialisation, order, augmentation and division", low=0, high=2**63 - 1)
    device: str = option(
        "auto", "auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:N or mps", tested=True, resumable=True
    )
    log_period: int = option(100, "training steps between log lines", low=1, resumable=True)
    eval_period: int = option(1, "epochs between validations", low=1)
    record_test: bool = option(
        False, "also evaluate the test split at each validation; only recorded, never used for selection"
    )
    grad_accum: int = option(
        1,
        "encode a batch in this many parts to save memory; the loss still compares all pairs (needs tse_bn frozen)",
        low=1,
        resumable=True,
    )
    cuda_graphs: bool = option(
        False,
        "capture steps as CUDA graphs, for GPUs so fast that they wait for Python (H100, H200); single process",
        resumable=True,
    )


@settings(_RUN)
@dataclass(frozen=True)
class StartSettings:
    """Actions other than training a new run."""

    resume_ckpt_file: str = option(
        "", "resume from this checkpoint in its run folder (not allowed in a configuration)", resumable=True
    )
    test: bool = option(False, "evaluate the starting weights and stop")
    plugin: str = option(
        "", "Python file with your own objectives, heads, …; several separated by commas", tested=True, resumable=True
    )


@settings("without effect")
@dataclass(frozen=True)
class IdleSettings:
    """Flags accepted for compatibility with the published code."""

    MLM: bool = option(False, "IRRA's flag; words are masked whenever mlm is trained", idle=True, resumable=True)
    local_rank: int = option(0, "the process's rank on its machine, set by the launcher", idle=True, resumable=True)
