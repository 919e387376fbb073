"""Files that are whole or not there: checkpoints and JSON are written to a temporary name, synced, then renamed.

Checkpoints hold tensors and plain Python values only and are loaded with weights_only=True, so that a file from
somebody else cannot run code.
"""

from pathlib import Path

import torch

from mtl_utils.files import UserError, write_atomically

FORMAT = 2  # raised whenever files of an older version can no longer be read


def save(path: Path, content: dict) -> None:
    """Write a checkpoint: tensors and plain values under string keys."""
    write_atomically(path, lambda file: torch.save({"format": FORMAT, **content}, file))


def load(path: Path) -> dict:
    """Read a checkpoint onto the CPU. Raises UserError when it is missing, damaged, hostile or of another version."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist: train first, or name another file.") from error
    except Exception as error:  # what torch.load raises on garbage is of many kinds
        remedy = "it is damaged or holds more than weights, so it was not opened; take an intact file"
        raise UserError(f"{path} is not a checkpoint of this project: {remedy}.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else None
        raise UserError(f"{path} has checkpoint format {found}, this version reads {FORMAT}: train it again.")
    return content


def halved(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights on the CPU in half precision: half the size, and the metrics change by no more than rounding."""
    return {k: v.cpu().half() if v.is_floating_point() else v.cpu() for k, v in state.items()}
