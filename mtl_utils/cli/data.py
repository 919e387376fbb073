"""The commands on data: check, fetch, synthetic, fold."""

import argparse

from mtl_utils import files
from mtl_utils.cli.evaluate import chosen_tasks
from mtl_utils.prepare import check, fetch, folds, synthetic
from mtl_utils.prepare.root import find_root
from mtl_utils.tasks import SPLITS


def check_command(options: argparse.Namespace) -> int:
    """Verify a root; the exit status says whether it has faults."""
    root = options.root or find_root().path
    splits = SPLITS if options.split is None else [options.split]
    faults = check.report(root, chosen_tasks(options.tasks), splits)
    return 1 if faults else 0


def fetch_command(options: argparse.Namespace) -> None:
    """Build the mini sets from their official sources."""
    root = options.root or files.PROJECT / "data"
    fetch.fetch(root)


def synthetic_command(options: argparse.Namespace) -> None:
    """Render the synthetic sets."""
    root = options.root or files.PROJECT / "data" / "synthetic"
    synthetic.write_synthetic(root)
    print(f"synthetic mini sets are in {root}")


def fold_command(options: argparse.Namespace) -> None:
    """Split the training sets into the train and val of a new root."""
    folds.write_fold(options.root, options.out, options.fold)
    print(f"fold {options.fold} of {options.root} is in {options.out}")
