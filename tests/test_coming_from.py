"""docs/coming_from.md lists every flag of the published programs, with correct descriptions."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import test as evaluation_root
from options import build_parser, resolve
from utils.settings import FLAGS

TEXT = (Path(__file__).parents[1] / "docs/coming_from.md").read_text(encoding="utf-8")
PUBLISHED = re.findall(
    r"\w+",
    """
local_rank name output_dir log_period eval_period val_dataset resume resume_ckpt_file pretrain_choice
temperature img_aug txt_aug cmt_depth masked_token_rate masked_token_unchanged_rate lr_factor MLM loss_names
mlm_loss_weight id_loss_weight img_size stride_size text_length vocab_size optimizer lr bias_lr_factor
momentum weight_decay weight_decay_bias alpha beta num_epoch milestones gamma warmup_factor warmup_epochs
warmup_method lrscheduler target_lr power dataset_name sampler num_instance root_dir batch_size
test_batch_size num_workers test noisy_rate noisy_file tau select_ratio margin
""",
)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_flags_are_documented_and_accepted(name):
    assert f"`--{name}" in TEXT
    assert f"--{name} " in build_parser("").format_help()


def test_documented_flags_exist_and_idle_ones_are_marked():
    flags = set(re.findall(r"--(\w+)", TEXT))
    assert flags <= {action.dest for of in (build_parser(""), evaluation_root.build_parser()) for action in of._actions}
    without_effect = TEXT[TEXT.index("**without effect**") :].split("\n\n")[0]
    idle = {name for name, flag in FLAGS.items() if flag.idle}
    assert idle == set(re.findall(r"--(\w+)`", without_effect.split("IRRA's flags")[0]))


@pytest.mark.parametrize("name", ["precision", "noisy_rate", "tse_bn"])
def test_documented_defaults_are_the_programs(name):
    (here,) = re.findall(rf"^\| `--{name}` \| .*? \| (\S+);", TEXT, re.MULTILINE)
    assert here == str(resolve({})[name])


def test_the_split_that_selects_by_default_is_named():
    assert f"on `--val_dataset {resolve({}).val_dataset}`; `--val_dataset test` for theirs" in TEXT
