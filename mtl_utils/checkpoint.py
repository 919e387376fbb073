"""Files that are whole or not there: checkpoints and JSON are written to a temporary name, synced, then renamed.

Checkpoints hold tensors and plain Python values only and are loaded with weights_only=True, so that a file from
somebody else cannot run code.
"""

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import torch

from mtl_utils.settings import UserError

FORMAT = 1  # raised whenever files of an older version can no longer be read


def write_atomically(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Let `write` fill a file; `path` holds either its whole new content or what it held before.

    Raises UserError when the disk is full or the folder cannot be written.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError on a full disk
        cause = error if isinstance(error, OSError) else error.__context__ or error
        raise UserError(f"{path} could not be saved ({cause}): make room on the disk, then run again.") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


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


def write_json(path: Path, content: object, indent: int | None = 1) -> None:
    """Write JSON, readable for people unless `indent` is None, which makes it small."""
    separators = None if indent else (",", ":")
    text = json.dumps(content, indent=indent, separators=separators, ensure_ascii=False, allow_nan=False)
    write_atomically(path, lambda file: file.write(text.encode()))
