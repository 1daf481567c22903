"""The log's first lines: what is trained on what."""

from __future__ import annotations

import shlex

from datasets.run_data import RunData
from datasets.settings import DATASETS
from model.precision import ARITHMETIC
from solver.settings import split_loss_names
from utils.log import logger
from utils.ranks import is_main, world_size
from utils.run_folder import RunFolder
from utils.settings import FLAGS, Options


def log_start(options: Options, data: RunData, run: RunFolder, epochs_done: int | None) -> None:
    """Log what is trained on what; `epochs_done` is None for a new run."""
    logger.info("%s %s", "Run folder" if epochs_done is None else f"Resuming after epoch {epochs_done}:", run)
    began = run.facts().get("processes") if is_main() else world_size()
    if began != world_size():
        logger.info("  begun with %s processes, resumed with %d: the same up to rounding", began, world_size())
    if world_size() > 1:
        logger.info("%d processes share each batch of %d pairs", world_size(), options.batch_size)
    logger.info("%s, train: %s", options.dataset_name, data.pairs.split.summary())
    logger.info("  arithmetic: %s, %s", options.precision, ARITHMETIC[options.precision])
    if idle := _without_effect(options):
        logger.info("  without effect here: %s", ", ".join(f"--{name}" for name in idle))
    _log_noise(options, data)
    if options.exclude:
        logger.info("  excluded: %d pairs, marked in %s", len(data.pairs.excluded), options.exclude)
    for why, pairs in data.pairs.skipped().items():
        logger.warning("  skipped: %s; pairs %s", why, ", ".join(map(str, pairs)))
    if skipped := len(data.facts["skipped_pairs"]):
        logger.warning("  %d of %d training pairs are skipped for it", skipped, len(data.pairs))
    for gallery in dict.fromkeys((data.validation, data.test)):
        logger.info("%s, %s: %s", options.dataset_name, gallery.name, gallery.split.summary())
    for name, captions in data.cut.items():
        if captions:
            logger.info("  %d captions of %s are cut to --text_length %d", captions, name, options.text_length)
    if data.validation is data.test:
        logger.info("  the best checkpoint is chosen on the test split")
    for remark in data.remarks:
        logger.warning("  %s", remark)
    if data.remarks:
        names = ("dataset_name", "root_dir", *(("split_all",) if options.split_all else ()))
        where = shlex.join([part for name in names for part in (f"--{name}", options[name])])
        logger.warning("  for all of it: python -m tools.check_data %s", where)


def _without_effect(options: Options) -> list[str]:
    """The flags given that nothing in this run reads."""
    chosen = {*split_loss_names(options.loss_names), options.division}
    return [
        name
        for name, value in options.items()
        if FLAGS[name].idle
        or (value != FLAGS[name].default and FLAGS[name].only and chosen.isdisjoint(FLAGS[name].only))
    ]


def _log_noise(options: Options, data: RunData) -> None:
    logger.info("  noise: %s", data.noise.summary)
    if options.noisy_rate and options.dataset_name not in DATASETS:
        what = "puts captions of your own data out of place; leave it out to train on them as they are"
        logger.warning("  --noisy_rate %g %s", options.noisy_rate, what)
