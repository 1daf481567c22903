"""The model card of an exported model, as on the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datasets.settings import DATASETS
from model.pretrained import OPENAI
from solver.settings import IRRA, without_label
from utils.run_folder import Metrics
from utils.settings import FLAGS

# Methods by objectives and division, as in docs/methods.md, with their papers.
_RDE = "Qin et al., Noisy-Correspondence Learning for Text-to-Image Person Re-identification, CVPR 2024"
_METHODS = {
    (frozenset({"TAL"}), "ccd"): ("RDE", _RDE),
    (frozenset({"TAL"}), "ccd-soft"): ("RDE with soft labels", _RDE),
    (frozenset({"sdm", "mlm", "id"}), "all"): (
        "IRRA",
        "Jiang and Ye, Cross-Modal Implicit Relation Reasoning and Aligning for Text-to-Image Person Retrieval, "
        "CVPR 2023",
    ),
    (frozenset({"DECL"}), "decl"): (
        "DECL",
        "Qin et al., Deep Evidential Learning with Noisy Correspondence for Cross-Modal Retrieval, ACM MM 2022",
    ),
    (frozenset({"CRCL"}), "crcl"): (
        "CRCL",
        "Qin et al., Cross-modal Active Complementary Learning with Self-refining Correspondence, NeurIPS 2023",
    ),
    (frozenset({"InfoNCE"}), "oracle"): ("CLIP-C", "CLIP, fine-tuned on the truly clean pairs"),
}


def model_card(
    flags: Mapping[str, Any], about: Mapping[str, Any], metrics: Metrics, checkpoint: tuple[str, int | None]
) -> str:
    """The card as Markdown.

    Args:
        flags: the run's flags; paths by name only.
        about: the `_run_` part of its configuration.
        metrics: the checkpoint's metrics on the test split, in percent; empty if it wasn't tested.
        checkpoint: its file name, and its number of epochs, if recorded.
    """
    data, start = flags["dataset_name"], flags.get("pretrain_choice", "unknown")
    method, paper = _method(flags)
    noise, rate = about.get("noise_index", {}), flags.get("noisy_rate")
    file, epoch = checkpoint
    place = "--root_dir /path/to/data" if data in DATASETS else "--dataset_name /path/to/annotations"
    lines = [
        "---",
        "license: other",
        "tags: [text-to-image-person-re-identification, noisy-correspondence]",
        "---",
        f"# {method} on {data}",
        "",
        f"A dual encoder that finds images of a person by a sentence{f' ({paper})' if paper else ''}.",
        "",
        "## Data and noise",
        "",
        f"- Trained on {data}'s training split, from the weights of {start}.",
        f"- Shuffled captions: {'unknown' if rate is None else f'{100 * rate:g}%'}"
        + (f" (noise index SHA-256 {noise['sha256']})." if rate and noise.get("sha256") else "."),
        f"- Pairs excluded by hand: {about.get('excluded', {}).get('pairs', 'unknown')}.",
        f"- Checkpoint {file}{'' if epoch is None else f', after epoch {epoch}'}{_chosen(flags, about, file)}; "
        f"code revision {about.get('git_revision', 'unknown')}.",
        "",
        "## Metrics on the test split (%)",
        "",
        *_metrics_table(metrics),
        "",
        "## Use",
        "",
        "```sh",
        f"python test.py THIS_FOLDER {place}",
        "python -m tools.search index --run THIS_FOLDER --gallery /path/to/images",
        "```",
        "",
        "## Flags",
        "",
        "| flag | value |",
        "|---|---|",
        *(f"| {name} | {' '.join(map(str, v)) if isinstance(v, list | tuple) else v} |" for name, v in flags.items()),
        "",
        "## Licence and limits",
        "",
        f"The code is Apache-2.0. The weights were trained from {_origin(start)}, and on {data}: the licences of both "
        "extend to them; the public data sets of photographs allow research only. The model finds look-alikes by "
        "clothing and bearing, it does not identify anybody, and has the biases of its captions and cameras.",
        "",
    ]
    return "\n".join(lines)


def _method(flags: Mapping[str, Any]) -> tuple[str, str]:
    """The method's name and paper; for methods not in docs/methods.md, its objectives, division and embeddings, and "".

    Runs of the published codes record no division: IRRA has none, RDE's is CCD.
    """
    names = without_label(str(flags.get("loss_names", FLAGS["loss_names"].default)))
    objectives = frozenset(names.split("+"))
    division = flags.get("division", "all" if objectives <= IRRA else "ccd")
    if known := _METHODS.get((objectives, division)):
        return known
    embeddings = f", embeddings {flags['heads']}" if "heads" in flags else ""
    return f"{names}, division {division}{embeddings},", ""


def _origin(start: str) -> str:
    return f"OpenAI's CLIP {start} (MIT)" if start in OPENAI else f"the weights {start}"


def _chosen(flags: Mapping[str, Any], about: Mapping[str, Any], file: str) -> str:
    """The split that selected a checkpoint. Older runs don't record it: for ICFG-PEDES, which has no validation split,
    it is the test split.
    """
    if file != "best.pth":
        return ""
    split = "test" if flags["dataset_name"] == "ICFG-PEDES" else flags.get("val_dataset", "unknown")
    return f", chosen on the split {about.get('selected_on', split)}"


def _metrics_table(metrics: Metrics) -> list[str]:
    if not metrics:
        return ["Not evaluated."]
    columns = list(next(iter(metrics.values())))
    rows = [f"| {name} | {' | '.join(f'{row[c]:.2f}' for c in columns)} |" for name, row in metrics.items()]
    return [f"| | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}", *rows]
