"""Weights that a new model's trunk starts from: EfficientNet-Lite0's public ImageNet weights, which the project holds.

MTL_IMAGENET_WEIGHTS may name another file of the same network, or "nothing". A file is verified and read once; all who
need its content are handed a StartingWeights.
"""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mtl_utils import environment, files
from mtl_utils.files import UserError, read_json, user_path
from mtl_utils.model import ConvNorm, Trunk, UnifiedModel, fold_batchnorm

VARIABLE = environment.IMAGENET_WEIGHTS  # named in messages
NOTHING = "nothing"  # the label of a start from random numbers, and the variable's value for it
LABEL_DIGITS = 12  # of the SHA-256 that a label shows
CLASSIFIER = "_fc."  # what the names of the ImageNet classifier begin with, which the trunk does not have


@dataclass(frozen=True)
class StartingWeights:
    """What a new model's trunk starts from."""

    label: str  # the file's name and the start of its SHA-256, or "nothing"; stored with every run
    content: dict[str, Any] | None = None  # of the file; None for nothing


def find_starting_weights() -> StartingWeights:
    """Find, verify and read the weights that a new model starts from.

    Raises UserError when the file cannot be read, is damaged or is not a weights file.
    """
    named = environment.imagenet_weights()
    if named == NOTHING:
        return StartingWeights(NOTHING)
    path = user_path(named) if named else files.START_WEIGHTS
    data = read_bytes(path)  # once: the hash and the tensors come from the same bytes
    digest = verified_hash(path, data)
    return StartingWeights(f"{path.name} {digest[:LABEL_DIGITS]}", unpack(path, data))


def read_bytes(path: Path) -> bytes:
    """The content of a weights file. Raises UserError when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        remedy = f"name another file in {VARIABLE}"
        raise UserError(f"{path} cannot be read ({error.strerror}): {remedy}.") from error


def verified_hash(path: Path, data: bytes) -> str:
    """SHA-256 of a file's content. Raises UserError when it is not what the card beside the file says."""
    digest = hashlib.sha256(data).hexdigest()
    card = path.with_suffix(".json")
    if card.exists():
        content = read_json(card, "restore it from the project's repository, or delete it")
        expected = str(content["sha256"])
        if digest != expected:
            raise UserError(f"{path} is damaged: its SHA-256 is not {expected[:LABEL_DIGITS]}...; restore it.")
    return digest


def unpack(path: Path, data: bytes) -> dict[str, Any]:
    """The tensors in a weights file's bytes. Raises UserError when there are none."""
    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever is wrong with the file, the remedy is the same
        raise UserError(f"{path} is not a weights file: name another in {VARIABLE}.") from error
    # a bare tensor holds no layers by name
    return content if isinstance(content, dict) else {}


def load_starting_weights(model: UnifiedModel, start: StartingWeights) -> None:
    """Load starting weights into a new model; "nothing" leaves it as it is.

    Raises UserError when they are not EfficientNet-Lite0's.
    """
    if start.content is None:
        return
    try:
        load_imagenet(model.backbone.trunk, start.content)
    except (ValueError, AttributeError, RuntimeError) as error:
        remedy = f"name another file in {VARIABLE}, or unset it"
        raise UserError(f"{start.label} holds no weights of EfficientNet-Lite0: {remedy}.") from error
    model.has_imagenet_trunk = True  # the trunk then learns more slowly, or is frozen


def load_imagenet(trunk: Trunk, state: dict[str, Tensor]) -> list[tuple[str, str]]:
    """Copy EfficientNet-Lite0's weights into the trunk, layer by layer, and fold their BatchNorm.

    Both networks hold the same tensors in the same order, so they are paired by order and checked by shape.
    Returns the pairs (name there, name here). Raises ValueError when the layers do not match.
    """
    own = trunk.state_dict()
    theirs = layer_names(state)
    ours = layer_names(own)
    if [state[name].shape for name in theirs] != [own[name].shape for name in ours]:
        raise ValueError("the weights are not those of EfficientNet-Lite0")
    pairs = list(zip(theirs, ours, strict=True))
    renamed = {our_name: state[their_name].float() for their_name, our_name in pairs}
    trunk.load_state_dict(renamed, strict=False)  # not strict: the counters of batches stay
    fold_batchnorm(trunk)  # ImageNet's statistics stay as they are, whatever is trained on
    return pairs


def layer_names(state: dict[str, Tensor]) -> list[str]:
    """The names of a state dict that matter to the trunk: no classifier, no counters of batches."""
    names = [name for name in state if not name.startswith(CLASSIFIER)]
    return [name for name in names if not name.endswith("num_batches_tracked")]


def load_weights(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Load a state dict into a new model or a part of it, folding first what was folded when it was saved.

    Raises RuntimeError (from load_state_dict) when names or shapes differ.
    """
    for name, block in model.named_modules():
        # without running statistics the BatchNorm of this block was folded before it was saved
        if isinstance(block, ConvNorm) and f"{name}.1.running_mean" not in state:
            block.fold()
    model.load_state_dict(state)
