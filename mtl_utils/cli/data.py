"""The commands on data: check, fetch, pack, synthetic, fold."""

import argparse

from mtl_utils import files
from mtl_utils.cli.evaluate import chosen_tasks
from mtl_utils.prepare import check, folds, pack, synthetic
from mtl_utils.prepare.root import find_root
from mtl_utils.tasks import SPLITS


def check_command(options: argparse.Namespace) -> int:
    """Verify a root; the exit status says whether it has faults."""
    root = options.root or find_root().path
    splits = SPLITS if options.split is None else [options.split]
    faults = check.report(root, chosen_tasks(options.tasks), splits)
    return 1 if faults else 0


def fetch_command(options: argparse.Namespace) -> None:
    """Build the mini sets from a pack or from their official sources."""
    root = options.root or files.PROJECT / "data"
    if options.source is None:
        pack.fetch_sets(root)
    else:
        pack.fetch_pack(root, options.source, options.sha256)


def pack_command(options: argparse.Namespace) -> None:
    """Write the mini sets to one zip."""
    root = options.root or find_root().path
    digest = pack.write_pack(root, options.out)
    print(f"{options.out} holds the three sets. Put it on the web and this line into {pack.ADDRESS}, so that notebooks")
    print(f"and `data fetch` take it from there:\nADDRESS {digest}")


def synthetic_command(options: argparse.Namespace) -> None:
    """Render the synthetic sets."""
    root = options.root or files.PROJECT / "data" / "synthetic"
    synthetic.write_synthetic(root)
    print(f"synthetic mini sets are in {root}")


def fold_command(options: argparse.Namespace) -> None:
    """Split the training sets into the train and val of a new root."""
    folds.write_fold(options.root, options.out, options.fold)
    print(f"fold {options.fold} of {options.root} is in {options.out}")
