"""Public ImageNet weights of MobileNetV2: where they come from and how they get into the trunk."""

import hashlib
import os

import torch
from torchvision.models import MobileNet_V2_Weights

from mtl_utils.model import UnifiedModel, load_imagenet
from mtl_utils.settings import PROJECT, UserError, user_path

VARIABLE = "MTL_IMAGENET_WEIGHTS"  # a file, or "download" to let torchvision fetch its IMAGENET1K_V1 weights once
FOLDER = PROJECT / "data" / "weights"  # torchvision's download is kept here and found again without asking


def read_imagenet() -> tuple[dict[str, torch.Tensor] | None, str]:
    """The state dict of torchvision's mobilenet_v2 that MTL_IMAGENET_WEIGHTS or data/weights names, and its label.

    The label is the file's name and the start of its SHA-256, or "nothing". The network is only touched when the
    variable says "download". Raises UserError when the file named cannot be read.
    """
    named = os.environ.get(VARIABLE, "")
    if named == "download":
        return download(), "torchvision IMAGENET1K_V1"
    files = [user_path(named)] if named else sorted(FOLDER.glob("mobilenet_v2*.pt*"))
    if not files:
        return None, "nothing"
    try:
        content = files[0].read_bytes()
        state = torch.load(files[0], map_location="cpu", weights_only=True)
    except Exception as error:  # whatever is wrong with the file, the remedy is the same
        raise UserError(f"{files[0]} (from {VARIABLE}) is no weights file: name another or unset it.") from error
    return state, f"{files[0].name} {hashlib.sha256(content).hexdigest()[:12]}"


def download() -> dict[str, torch.Tensor]:
    """Torchvision's own weights, verified by the hash in their name. Raises UserError without a connection."""
    try:
        return MobileNet_V2_Weights.IMAGENET1K_V1.get_state_dict(model_dir=str(FOLDER), check_hash=True)
    except (OSError, RuntimeError) as error:
        raise UserError(f"The ImageNet weights could not be downloaded ({error}): set {VARIABLE} to a file.") from error


def start(model: UnifiedModel) -> str:
    """Load ImageNet weights into a new model where they fit and are to be had; returns their label or "nothing"."""
    if model.widths != "mobilenetv2":
        return "nothing"
    state, label = read_imagenet()
    if state is not None:
        try:
            load_imagenet(model.backbone.trunk, state)
            model.pretrained = True
        except (ValueError, AttributeError) as error:
            raise UserError(f"{label}: not MobileNetV2's ImageNet weights; name others in {VARIABLE}.") from error
    return label
