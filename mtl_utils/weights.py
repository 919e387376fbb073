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

from mtl_utils import checkpoint, environment, files
from mtl_utils.checkpoint import shown
from mtl_utils.files import UserError, read_json, user_path
from mtl_utils.model import ConvNorm, Trunk, UnifiedModel, fold_batchnorm

VARIABLE = environment.IMAGENET_WEIGHTS  # named in messages
NOTHING = "nothing"  # the label of a start from random numbers, and the variable's value for it
LABEL_DIGITS = 12  # of the SHA-256 that a label shows
CLASSIFIER = "_fc."  # what the names of the ImageNet classifier begin with, which the trunk does not have
SHOWN_DIFFERENCES = 3  # tensors that a message names


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
    remedy = f"name another file in {VARIABLE}"
    try:
        if path.exists() and not path.is_file():  # reading a pipe would wait for ever
            raise UserError(f"{path} cannot be read (it is a folder, a pipe or a device): {remedy}.")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): {remedy}.") from error


def verified_hash(path: Path, data: bytes) -> str:
    """SHA-256 of a file's content. Raises UserError when it is not what the card beside the file says."""
    digest = hashlib.sha256(data).hexdigest()
    compare_with_card(path, digest)
    return digest


def verify_file(path: Path) -> None:
    """Raise UserError when a file is not what the card beside it says; a file without a card is left alone."""
    if hash_on_card(path) is not None:  # else the file need not be read a second time
        digest = files.sha256(path)
        compare_with_card(path, digest)


def compare_with_card(path: Path, digest: str) -> None:
    """Raise UserError when a file's SHA-256 is not the one on the card beside it."""
    expected = hash_on_card(path)
    if expected is not None and digest != expected:
        raise UserError(f"{path} is damaged: its SHA-256 is not {expected[:LABEL_DIGITS]}...; restore it.")


def hash_on_card(path: Path) -> str | None:
    """The SHA-256 on the card beside a weights file, None where there is no card.

    The JSON of a stage has the same place and no hash: it is no card. Raises UserError when the JSON is damaged.
    """
    card = path.with_suffix(".json")
    if not card.exists():
        return None
    content = read_json(card, "restore it from the project's repository, or delete it")
    if not isinstance(content, dict) or "sha256" not in content:  # of a stage, or of something else
        return None
    return str(content["sha256"])


def unpack(path: Path, data: bytes) -> dict[str, Any]:
    """The tensors in a weights file's bytes. Raises UserError when there are none, or when they are damaged."""
    remedy = f"name another in {VARIABLE}"
    try:
        content = unpack_any_age(data)
    except checkpoint.Refused as error:
        raise UserError(f"{path} is not a weights file ({error}): {remedy}.") from error
    except Exception as error:  # whatever is wrong with the file, the remedy is the same
        raise UserError(f"{path} is not a weights file: {remedy}.") from error
    # a bare tensor holds no layers by name
    return content if isinstance(content, dict) else {}


def unpack_any_age(data: bytes) -> Any:
    """What torch.save wrote, in its archives or, as published before 2020, without one.

    Raises checkpoint.Refused for a damaged archive, and whatever torch.load raises on garbage.
    """
    file = io.BytesIO(data)
    if data.startswith(checkpoint.ZIP_START):
        return checkpoint.unpack(file)
    # such a file has no checksums, but its values can be looked at
    content = torch.load(file, map_location="cpu", weights_only=True)
    checkpoint.check_tensors(content, len(data))
    return content


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


class Mismatch(RuntimeError):
    """Weights of another model: the text names tensors that differ."""


def load_weights(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Load a state dict into a new model or a part of it, folding first what was folded when it was saved.

    Raises Mismatch, a RuntimeError, when names or shapes differ.
    """
    for name, block in model.named_modules():
        # without running statistics the BatchNorm of this block was folded before it was saved
        if isinstance(block, ConvNorm) and f"{name}.1.running_mean" not in state:
            block.fold()
    # torch would name every tensor, on a line of its own
    found = differences(model.state_dict(), state)
    if found:
        raise Mismatch(some_of(found))
    model.load_state_dict(state)


def differences(own: dict[str, Tensor], state: dict[str, Tensor]) -> list[str]:
    """In what tensors a state dict differs from a model's own: a clause for each, other shapes first."""
    shapes, missing = [], []
    for name, tensor in own.items():
        if name not in state:
            missing.append(f"{shown(name)} is missing")
            continue
        shape = getattr(state[name], "shape", None)  # None for what is no tensor
        if shape is not None and state[name].is_floating_point() != tensor.is_floating_point():
            shapes.append(f"{shown(name)} is {state[name].dtype} instead of {tensor.dtype}")
            continue
        if shape != tensor.shape:
            there = "no tensor" if shape is None else tuple(shape)
            shapes.append(f"{shown(name)} is {there} instead of {tuple(tensor.shape)}")
    unexpected = [f"{shown(str(name))} is not known" for name in state if name not in own]
    # a message shows the first ones: a shape says most about what the file was made for
    return shapes + missing + unexpected


def some_of(clauses: list[str]) -> str:
    """The first of some clauses, and how many more there are."""
    text = ", ".join(clauses[:SHOWN_DIFFERENCES])
    more = len(clauses) - SHOWN_DIFFERENCES
    return f"{text} and {more} more" if more > 0 else text
