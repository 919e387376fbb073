"""Weights that a new model starts from: stage 0's network, or public ImageNet weights for the trunk.

MTL_IMAGENET_WEIGHTS decides: a file; "download", torchvision's own, fetched once into data/weights/; "nothing". Without
it the best of what data/weights/ holds is taken: stage 0's network for these widths, else torchvision's MobileNetV2.
A file is found, verified and read once; all who need its content are handed a StartingWeights.
"""

import hashlib
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import MobileNet_V2_Weights

from mtl_utils import checkpoint, environment, files
from mtl_utils.files import UserError, read_json, user_path
from mtl_utils.model import LAST, ConvNorm, Trunk, UnifiedModel, fold_batchnorm

VARIABLE = environment.IMAGENET_WEIGHTS  # named in messages
NOTHING = "nothing"  # the label of a start from random numbers
DOWNLOAD = "download"  # as the variable's value: torchvision's weights
LABEL_DIGITS = 12  # of the SHA-256 that a label shows
HASH_IN_NAME = re.compile(r"-([0-9a-f]{8})\.pth?$")  # torchvision's file names end in the start of their SHA-256


@dataclass(frozen=True)
class StartingWeights:
    """What a new model starts from."""

    label: str  # the file's name and the start of its SHA-256, or "nothing"; stored with every run
    content: dict[str, Any] | None = None  # of the file; None for nothing

    @property
    def has_stage0(self) -> bool:
        """Whether it is stage 0's network, with the classifier that it was trained with."""
        return self.content is not None and checkpoint.is_stage0(self.content)


def find_starting_weights(widths: str, include_stage0: bool = True) -> StartingWeights:
    """Find, verify and read the weights that a new model of these widths starts from; nothing where none fit.

    Stage 0 itself asks without `include_stage0`: it must not start from what an earlier stage 0 has left. Raises
    UserError when the file cannot be read, is damaged or is not a weights file, or when the user named one of other
    widths.
    """
    path = find_path(widths, include_stage0)
    if path is None:
        return StartingWeights(NOTHING)
    data = read_bytes(path)  # once: the hash and the tensors come from the same bytes
    digest = verified_hash(path, data)
    content = unpack(path, data)
    # torchvision's file names no widths: it is always MobileNetV2's
    own_widths = content.get("widths", "mobilenetv2")
    if own_widths != widths:
        if named_by_user():
            remedy = f"name a file for {widths}, or unset {VARIABLE}"
            raise UserError(f"{in_message(path)} holds weights for widths {own_widths}, not {widths}: {remedy}.")
        return StartingWeights(NOTHING)
    return StartingWeights(f"{path.name} {digest[:LABEL_DIGITS]}", content)


def named_by_user() -> bool:
    """Whether MTL_IMAGENET_WEIGHTS names a file."""
    return environment.imagenet_weights() not in ("", DOWNLOAD, NOTHING)


def in_message(path: Path) -> str:
    """A weights file as messages name it: with the variable where that named it."""
    # a file of data/weights/ was found, not named
    return f"{path} (from {VARIABLE})" if named_by_user() else str(path)


def find_path(widths: str, include_stage0: bool) -> Path | None:
    """The weights file for these widths, None for nothing; downloads only when told to."""
    named = environment.imagenet_weights()
    if named == NOTHING:
        return None
    if named == DOWNLOAD:
        return download()
    if named:
        return user_path(named)
    # the best comes first
    patterns = []
    if include_stage0:
        patterns.append(f"stage0_{widths}.pt")
    if widths == "mobilenetv2":
        patterns.append("mobilenet_v2*.pt*")
    for pattern in patterns:
        for path in sorted(files.WEIGHTS_FOLDER.glob(pattern)):
            return path
    return None


def download() -> Path:
    """Torchvision's own weights in data/weights/, fetched if need be. Raises UserError without a connection."""
    weights = MobileNet_V2_Weights.IMAGENET1K_V1  # 72 % Top-1, the weights of the paper's recipe
    try:
        # torchvision keeps the file and compares its hash with the name
        weights.get_state_dict(model_dir=str(files.WEIGHTS_FOLDER), check_hash=True)
    except (OSError, RuntimeError) as error:
        raise UserError(f"The ImageNet weights could not be downloaded ({error}): set {VARIABLE} to a file.") from error
    name = str(weights.url).rsplit("/", 1)[1]
    return files.WEIGHTS_FOLDER / name


def read_bytes(path: Path) -> bytes:
    """The content of a weights file. Raises UserError when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        remedy = f"name another file in {VARIABLE}"
        raise UserError(f"{in_message(path)} cannot be read ({error.strerror}): {remedy}.") from error


def verified_hash(path: Path, data: bytes) -> str:
    """SHA-256 of a file's content. Raises UserError when it is not what the file's card or its name says."""
    digest = hashlib.sha256(data).hexdigest()  # 64 digits
    expected = expected_hash(path)  # may be the start only
    # an empty expected hash always passes: such a file has neither a card nor a hash in its name
    if not digest.startswith(expected):
        raise UserError(f"{path} is damaged: its SHA-256 does not begin with {expected[:12]}; fetch it again.")
    return digest


def expected_hash(path: Path) -> str:
    """SHA-256, or its start, by the card beside a weights file or by its name; "" where neither says."""
    card = path.with_suffix(".json")
    if card.exists():
        content = read_json(card, "restore it from the project's repository, or delete it")
        return str(content["sha256"])
    match = HASH_IN_NAME.search(path.name)
    return match[1] if match else ""


def unpack(path: Path, data: bytes) -> dict[str, Any]:
    """The tensors in a weights file's bytes. Raises UserError when there are none."""
    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever is wrong with the file, the remedy is the same
        raise UserError(f"{in_message(path)} is not a weights file: name another in {VARIABLE}.") from error
    # a bare tensor holds no layers by name
    return content if isinstance(content, dict) else {}


def load_starting_weights(model: UnifiedModel, start: StartingWeights, classes: tuple[str, ...] = ()) -> None:
    """Load starting weights into a new model; "nothing" leaves it as it is.

    Where stage 0 was trained on some of `classes` (names of classification's classes), their channels start from its
    classifier's. Raises UserError when the weights do not fit.
    """
    if start.content is None:
        return
    try:
        if start.has_stage0:
            load_stage0(model, start.content)
            shared = shared_with_stage0(classes, start.content["classes"])
            model.head.init_from_classifier(classifier(start.content), shared)
        else:
            load_imagenet(model.backbone.trunk, start.content)
    except (ValueError, AttributeError, KeyError, RuntimeError) as error:
        remedy = f"name another file in {VARIABLE}"
        raise UserError(f"{start.label} holds no weights for widths {model.widths}: {remedy}.") from error
    model.has_imagenet_trunk = True  # the trunk then learns more slowly, or is frozen


def shared_with_stage0(classes: tuple[str, ...], stage0_classes: list[str]) -> dict[int, int]:
    """The classes that stage 0 was trained on too: {our index: its index}."""
    shared = {}
    for index, name in enumerate(classes):
        if name in stage0_classes:
            shared[index] = stage0_classes.index(name)
    return shared


def load_stage0(model: UnifiedModel, content: dict[str, Any]) -> None:
    """Stage 0's weights (see pretraining.Stage0.result) into a model; its head's last layer stays as it is."""
    state = {}
    for name, value in content["model"].items():
        state[name] = value.float()  # stored in half precision
    for name, value in model.state_dict().items():
        if name.startswith(LAST):  # the tasks' own channels, which stage 0 does not have
            state[name] = value
    load_weights(model, state)


def classifier(content: dict[str, Any]) -> nn.Linear:
    """Stage 0's linear classifier, which reads the mean over the cells of the head's features."""
    state = {name: value.float() for name, value in content["classifier"].items()}
    classes, features = state["weight"].shape  # as in nn.Linear: outputs first
    linear = nn.Linear(features, classes)
    linear.load_state_dict(state)
    return linear


def load_weights(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Load a state dict into a new model or a part of it, folding first what was folded when it was saved.

    Raises RuntimeError (from load_state_dict) when names or shapes differ.
    """
    for name, block in model.named_modules():
        # without running statistics the BatchNorm of this block was folded before it was saved
        if isinstance(block, ConvNorm) and f"{name}.1.running_mean" not in state:
            block.fold()
    model.load_state_dict(state)


def load_imagenet(trunk: Trunk, state: dict[str, Tensor]) -> list[tuple[str, str]]:
    """Copy torchvision's MobileNetV2 weights into the trunk, layer by layer, and fold their BatchNorm.

    Both networks hold the same tensors in the same order, so they are paired by order and checked by shape.
    Returns the pairs (name there, name here). Raises ValueError when the layers do not match.
    """
    # torchvision's classifier is left out; counters of batches have no part in inference
    theirs = [name for name in state if name.startswith("features.") and not name.endswith("num_batches_tracked")]
    own = trunk.state_dict()
    ours = [name for name in own if not name.endswith("num_batches_tracked")]
    if [state[name].shape for name in theirs] != [own[name].shape for name in ours]:
        raise ValueError("the weights are not those of torchvision's mobilenet_v2 or the widths are not mobilenetv2")
    pairs = list(zip(theirs, ours, strict=True))
    renamed = {our_name: state[their_name].float() for their_name, our_name in pairs}
    trunk.load_state_dict(renamed, strict=False)  # not strict: the counters stay
    fold_batchnorm(trunk)  # ImageNet's statistics stay as they are, whatever is trained on
    return pairs
