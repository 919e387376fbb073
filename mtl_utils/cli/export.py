"""The command export."""

import argparse
from pathlib import Path

from mtl_utils.data import MiniSet
from mtl_utils.files import UserError
from mtl_utils.prepare.root import find_root
from mtl_utils.tasks import TASKS, Classes

PACKAGES = "pip install onnx onnxruntime onnxscript"


def export_command(options: argparse.Namespace) -> None:
    """Write a trained model as ONNX and, if that is asked for, in eight bits beside it."""
    try:
        from mtl_utils.export import onnx_write  # here, since its packages are extras
    except ImportError as error:
        raise UserError(f"export needs a package that is missing ({error.name}): {PACKAGES}.") from error

    out = options.out or options.weights.with_suffix(".onnx")
    classes = onnx_write.export_onnx(options.weights, out)
    print(f"{options.weights} in ONNX is in {out}: {megabytes(out)}")
    if options.int8:
        small = out.with_suffix(".int8.onnx")
        onnx_write.export_int8(out, training_sets(options.data_root, classes), small)
        print(f"in eight bits it is in {small}: {megabytes(small)}")


def training_sets(data_root: str | None, classes: Classes) -> list[MiniSet]:
    """The training sets of a root, for the ranges of activations."""
    root = find_root(data_root).path
    return [MiniSet(task, root, "train", classes) for task in TASKS]


def megabytes(path: Path) -> str:
    """The size of a file."""
    return f"{path.stat().st_size / 1e6:.1f} MB"
