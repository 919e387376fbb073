"""The commands on data: check, synthetic."""

import argparse

from mtl_utils import files
from mtl_utils.prepare import check, synthetic
from mtl_utils.prepare.root import find_root


def check_command(options: argparse.Namespace) -> int:
    """Verify a root; the exit status says whether it has faults."""
    return min(check.report(options.root or find_root().path), 1)


def synthetic_command(options: argparse.Namespace) -> None:
    """Render the synthetic sets."""
    root = options.root or files.PROJECT / "data" / "synthetic"
    synthetic.write_synthetic(root)
    print(f"synthetic mini sets are in {root}")
