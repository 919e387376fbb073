"""An exported model in the place of the network: what evaluates the one evaluates the other."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from mtl_utils.files import UserError
from mtl_utils.model import Outputs
from mtl_utils.tasks import Classes

ABOUT = "mtl_utils"  # metadata: that the file is one of this project's, and its version
VERSION = 1  # of what the file holds
REMEDY = "make one with `python -m mtl_utils export WEIGHTS`"

onnxruntime.disable_telemetry_events()  # some of its builds report their use to their maker


class OnnxModel(nn.Module):
    """Runs an ONNX file of onnx_write on the CPU, with as many threads as torch has."""

    def __init__(self, path: Path):
        """Open a file. Raises UserError when it is none, or not one of this project's."""
        super().__init__()
        self.session = open_session(path)
        self.place = nn.Parameter(torch.empty(0))  # on the CPU, as `predict` asks the network's parameters
        about = self.session.get_modelmeta().custom_metadata_map
        try:
            values = {name: json.loads(about[name]) for name in (ABOUT, "eval_size", "classes")}
            if values[ABOUT] != VERSION:
                raise ValueError("another version")
            self.classes = Classes.from_dict(values["classes"])
            self.eval_size = int(values["eval_size"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} was not exported by this project: {REMEDY}.") from error

    def forward(self, images: Tensor, content: Tensor) -> Outputs:
        """What the network that was exported gives, as UnifiedModel does."""
        results = self.session.run(Outputs._fields, feed(images, content))
        return Outputs(*map(torch.from_numpy, results))


def feed(images: Tensor, content: Tensor) -> dict[str, np.ndarray]:
    """The inputs of an exported model from those of the network."""
    return {"images": images.contiguous().numpy(), "content": content.numpy()}


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """An ONNX file, ready to run. Raises UserError when it cannot be read."""
    if not path.is_file():
        raise UserError(f"{path} is no file: {REMEDY}.")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors only: what it warns of is its own affair
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has many, without a base class of their own
        raise UserError(f"{path} is no ONNX file that can be read: {REMEDY}.") from error
