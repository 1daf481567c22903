"""What happens when: the scoring pass that feeds CCD, the epoch, evaluation, the run."""
