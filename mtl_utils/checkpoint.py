"""Checkpoints: tensors and plain values in a file that is whole or not there.

They are loaded with weights_only=True, so that a file from somebody else cannot run code.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtl_utils.files import UserError, write_atomically

FORMAT = 3  # raised whenever files of an older version can no longer be read


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint: tensors and plain values under string keys."""
    stored = {"format": FORMAT, **content}  # first, so that a reader sees it at once
    write_atomically(path, lambda file: torch.save(stored, file))


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU. Raises UserError when it is missing, damaged, hostile or of another version."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist: train first, or name another file.") from error
    except Exception as error:  # what torch.load raises on garbage is of many kinds
        remedy = "it is damaged or holds more than weights, so it was not opened; take an intact file"
        raise UserError(f"{path} is not a checkpoint of this project: {remedy}.") from error
    # a bare state dict, or any other tensor file, has no format
    version = content.get("format") if isinstance(content, dict) else None
    if version != FORMAT:
        raise UserError(f"{path} has checkpoint format {version}, this version reads {FORMAT}: train it again.")
    return dict(content)


def halved(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights on the CPU in half precision: half the size, and the metrics change by no more than rounding."""
    smaller = {}
    for name, value in state.items():
        value = value.cpu()
        # counters stay whole numbers
        smaller[name] = value.half() if value.is_floating_point() else value
    return smaller
