"""Writes a trained model as ONNX: the one forward, for any number of inputs of any size.

The file's inputs are "images", (B, 3, H, W) float32 in [0, 1] with H and W multiples of 32, and "content", (B, 4)
float32 XYXY, where in each input the picture is. Its outputs are the fields of model.Outputs. Its metadata, ABOUT and
what follows it, are what a program needs to prepare inputs and to name what it reads.
"""

import copy
import json
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import nn

from mtl_utils import files
from mtl_utils.data import MiniSet
from mtl_utils.export.onnx_read import ABOUT, VERSION, feed
from mtl_utils.model import MAX_STRIDE, Outputs, SameConv
from mtl_utils.progress import progress
from mtl_utils.run import MAX_SIDE, load_model
from mtl_utils.tasks import VOC_CLASSES, Classes
from mtl_utils.transforms import to_batch

OPSET = 18  # of the operators; onnxruntime reads it since 1.14
INPUTS = ("images", "content")
MAX_BATCH = 1024
# stays in float32 beside eight bits: quantised, it makes more than nine tenths of the squared error of every output
IN_FLOAT = "backbone.trunk.downsample"


def export_onnx(weights: Path, out: Path) -> Classes:
    """Write a trained model as an ONNX file in float32; returns its classes. Raises UserError as load_model does."""
    model, content = load_model(weights)
    classes = Classes.from_dict(content["classes"])
    proto = to_proto(model)
    onnx.helper.set_model_props(proto, metadata(classes, content["settings"]["eval_size"]))
    onnx.checker.check_model(proto)
    files.write_atomically(out, lambda file: file.write(proto.SerializeToString()))
    return classes


def metadata(classes: Classes, eval_size: int) -> dict[str, str]:
    """What a program has to know of the model, each value as JSON."""
    values = {
        ABOUT: VERSION,
        "eval_size": eval_size,  # pixels of the square that a picture is letterboxed into
        "classes": classes.as_dict(),
        # to print, one a channel
        "names": {"seg": VOC_CLASSES, "det": classes.names("det"), "cls": classes.names("cls")},
    }
    return {name: json.dumps(value) for name, value in values.items()}


def to_proto(model: nn.Module) -> onnx.ModelProto:
    """A model as ONNX, dynamic in the number of inputs and in their height and width."""
    batch = torch.export.Dim("batch", max=MAX_BATCH)
    rows = torch.export.Dim("rows", min=2, max=MAX_SIDE // MAX_STRIDE)
    columns = torch.export.Dim("columns", min=2, max=MAX_SIDE // MAX_STRIDE)
    # different numbers, so that no two dimensions are taken for the same one
    images = torch.zeros(2, 3, 4 * MAX_STRIDE, 6 * MAX_STRIDE)
    content = torch.tensor([[0.0, 0.0, 192.0, 100.0], [0.0, 0.0, 90.0, 128.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # both inputs have the same number: it warns that one name is enough
        program = torch.onnx.export(
            exportable(model),
            (images, content),
            dynamo=True,
            dynamic_shapes=({0: batch, 2: MAX_STRIDE * rows, 3: MAX_STRIDE * columns}, {0: batch}),
            input_names=INPUTS,
            output_names=Outputs._fields,
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None, "the exporter returns a program unless it writes a file"
    return program.model_proto


def exportable(model: nn.Module) -> nn.Module:
    """A copy of a model that gives the same and exports to fewer operators."""
    copied = copy.deepcopy(model).eval()
    copied.to(memory_format=torch.contiguous_format)
    for module in list(copied.modules()):
        if isinstance(module, nn.ReLU6):
            module.inplace = False  # in place, the exporter would write the result back into its input
        for name, child in module.named_children():
            if isinstance(child, SameConv) and child.stride == (2, 2):
                setattr(module, name, padded_on_one_side(child))
    return copied


def padded_on_one_side(conv: SameConv) -> nn.Module:
    """The same convolution of stride 2, with padding instead of dropped outputs: ONNX can pad each side by its own."""
    kernel = conv.kernel_size[0]
    behind = kernel // 2
    before = behind - 1
    has_bias = conv.bias is not None
    plain = nn.Conv2d(conv.in_channels, conv.out_channels, kernel, stride=2, groups=conv.groups, bias=has_bias)
    plain.load_state_dict(conv.state_dict())
    return nn.Sequential(nn.ZeroPad2d((before, behind, before, behind)), plain)


# ---- eight bits


def export_int8(float_model: Path, datasets: Sequence[MiniSet], out: Path, images_each: int = 40) -> None:
    """Quantise the convolutions of an exported model to eight bits (static, per channel).

    float_model: what export_onnx wrote. datasets: the training sets, of each of which `images_each` images show the
    range of every activation. B. Jacob et al., "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference", CVPR 2018.
    """
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quantised = Path(folder) / "quantised.onnx"
        quant_pre_process(str(float_model), str(prepared), skip_symbolic_shape=True)
        size = json.loads(properties(float_model)["eval_size"])
        quantize_static(
            str(prepared),
            str(quantised),
            TrainingImages(datasets, size, images_each),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["Conv"],
            nodes_to_quantize=convolutions_to_quantize(prepared),
            calibrate_method=CalibrationMethod.MinMax,
        )
        data = quantised.read_bytes()
    files.write_atomically(out, lambda file: file.write(data))


def convolutions_to_quantize(path: Path) -> list[str]:
    """The names of an ONNX file's convolutions but those of IN_FLOAT."""
    names = []
    for node in onnx.load(str(path)).graph.node:
        if node.op_type != "Conv":
            continue
        weight = node.input[1]  # under its name in the network
        if not weight.startswith(IN_FLOAT):
            names.append(node.name)
    return names


def properties(path: Path) -> dict[str, str]:
    """The metadata of an ONNX file."""
    proto = onnx.load(str(path))
    return {entry.key: entry.value for entry in proto.metadata_props}


class TrainingImages(CalibrationDataReader):
    """Hands the quantiser one letterboxed training image after another."""

    def __init__(self, datasets: Sequence[MiniSet], size: int, images_each: int):
        self.feeds = calibration_feeds(datasets, size, images_each)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next image's inputs, None after the last one."""
        return next(self.feeds, None)


def calibration_feeds(datasets: Sequence[MiniSet], size: int, images_each: int) -> Iterator[dict[str, np.ndarray]]:
    """The inputs of `images_each` images of each set, evenly spaced in it."""
    for dataset in datasets:
        step = max(1, len(dataset) // images_each)
        title = f"ranges of {dataset.task}"
        for index in progress(range(0, len(dataset), step), desc=title, unit="image", leave=False, delay=2):
            image, _ = dataset[index]
            yield feed(*to_batch([image], size))
