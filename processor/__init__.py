"""The training loop: the scoring pass that feeds CCD, the epoch, evaluation, the run."""
