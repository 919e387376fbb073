"""Weights that a new model starts from: what stage 0 has warmed, or public ImageNet weights for the trunk.

MTL_IMAGENET_WEIGHTS decides: a file; "download", torchvision's own, fetched once into data/weights/; "nothing". Without
it the best of what data/weights/ holds is taken: stage 0's network for these widths, else torchvision's MobileNetV2.
"""

import hashlib
import json
import os
import re
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import MobileNet_V2_Weights

from mtl_utils import files
from mtl_utils.files import UserError, user_path
from mtl_utils.model import LAST, ConvNorm, Trunk, UnifiedModel, fold_batchnorm

VARIABLE = "MTL_IMAGENET_WEIGHTS"
NOTHING = "nothing"


def find_start(widths: str, warmed: bool = True) -> Path | None:
    """The file that a new model of these widths starts from, None for nothing; downloads only when told to.

    Stage 0 itself asks with warmed=False: it must not start from what an earlier stage 0 has left.
    """
    named = os.environ.get(VARIABLE, "")
    if named == "download":
        return download()
    if named:
        return None if named == NOTHING else user_path(named)
    patterns = [f"stage0_{widths}.pt"] * warmed + ["mobilenet_v2*.pt*"] * (widths == "mobilenetv2")
    return next((path for pattern in patterns for path in sorted(files.WEIGHTS_FOLDER.glob(pattern))), None)


def download() -> Path:
    """Torchvision's own weights in data/weights/, fetched if need be. Raises UserError without a connection."""
    weights = MobileNet_V2_Weights.IMAGENET1K_V1
    try:
        weights.get_state_dict(model_dir=str(files.WEIGHTS_FOLDER), check_hash=True)
    except (OSError, RuntimeError) as error:
        raise UserError(f"The ImageNet weights could not be downloaded ({error}): set {VARIABLE} to a file.") from error
    return files.WEIGHTS_FOLDER / weights.url.rsplit("/", 1)[1]


def verified_hash(path: Path) -> str:
    """SHA-256 of a file. Raises UserError when it cannot be read, or is not what its card or its name says."""
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"{path} (from {VARIABLE}) cannot be read ({error.strerror}): name another file.") from error
    card, named = path.with_suffix(".json"), re.search(r"-([0-9a-f]{8})\.pth?$", path.name)
    wanted = json.loads(card.read_text(encoding="utf-8"))["sha256"] if card.exists() else named[1] if named else ""
    if not found.startswith(wanted):
        raise UserError(f"{path} is damaged: its SHA-256 does not begin with {wanted[:12]}; fetch it again.")
    return found


def weights_label(widths: str, warmed: bool = True) -> str:
    """What a new model of these widths starts from: the file's name and the start of its SHA-256, or "nothing"."""
    path = find_start(widths, warmed)
    if path is None:
        return NOTHING
    name = f"{path.name} {verified_hash(path)[:12]}"
    return name if fits(read(path), widths) else NOTHING


def read(path: Path) -> dict:
    """The contents of a weights file. Raises UserError when it is none."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        return content if isinstance(content, dict) else {}
    except Exception as error:  # whatever is wrong with the file, the remedy is the same
        raise UserError(f"{path} (from {VARIABLE}) is no weights file: name another or unset it.") from error


def fits(content: dict, widths: str) -> bool:
    """Whether weights can go into a model of these widths; torchvision's are always MobileNetV2's."""
    return content.get("widths", "mobilenetv2") == widths


def load_starting_weights(model: UnifiedModel, classes: tuple[str, ...] = (), warmed: bool = True) -> str:
    """Load the weights to start from into a new model where there are any that fit; returns `label`.

    Where `classes` (names of classification's classes) are known to stage 0, their channels start as its classifier's.
    """
    path, name = find_start(model.widths, warmed), weights_label(model.widths, warmed)
    if name != NOTHING:
        content = read(path)
        try:
            if "classifier" in content:
                load_stage0(model, content)
                known = {i: content["classes"].index(c) for i, c in enumerate(classes) if c in content["classes"]}
                model.head.init_from_classifier(classifier(content), known)
            else:
                load_imagenet(model.backbone.trunk, content)
        except (ValueError, AttributeError, KeyError, RuntimeError) as error:
            raise UserError(f"{name}: no weights for widths {model.widths}; name others in {VARIABLE}.") from error
        model.has_imagenet_trunk = True
    return name


def load_stage0(model: UnifiedModel, content: dict) -> None:
    """Stage 0's weights (see Stage0.result) into a model; its head's last layer stays as it is."""
    last = {name: value for name, value in model.state_dict().items() if name.startswith(LAST)}
    load_weights(model, {name: value.float() for name, value in content["model"].items()} | last)


def classifier(content: dict) -> nn.Linear:
    """Stage 0's linear classifier of the hidden features' mean."""
    state = {k: v.float() for k, v in content["classifier"].items()}
    linear = nn.Linear(*reversed(state["weight"].shape))
    linear.load_state_dict(state)
    return linear


def load_weights(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Load a state dict into a new model or a part of it, folding first what was folded when it was saved.

    Raises RuntimeError (from load_state_dict) when names or shapes differ.
    """
    for name, block in model.named_modules():
        if isinstance(block, ConvNorm) and f"{name}.1.running_mean" not in state:
            block.fold()
    model.load_state_dict(state)


def load_imagenet(trunk: Trunk, state: dict[str, Tensor]) -> list[tuple[str, str]]:
    """Copy torchvision's MobileNetV2 weights into the trunk, layer by layer, and fold their BatchNorm.

    Both networks hold the same tensors in the same order, so they are paired by order and checked by shape.
    Returns the pairs (name there, name here). Raises ValueError when the layers do not match.
    """
    theirs = {k: v for k, v in state.items() if k.startswith("features.") and not k.endswith("num_batches_tracked")}
    mine = {k: v for k, v in trunk.state_dict().items() if not k.endswith("num_batches_tracked")}
    if [v.shape for v in theirs.values()] != [v.shape for v in mine.values()]:
        raise ValueError("the weights are not those of torchvision's mobilenet_v2 or the widths are not mobilenetv2")
    pairs = list(zip(theirs, mine, strict=True))
    trunk.load_state_dict({ours: theirs[name].float() for name, ours in pairs}, strict=False)
    fold_batchnorm(trunk)
    return pairs
