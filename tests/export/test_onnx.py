"""The exported model gives what the network gives, whatever the inputs' number and size, and is read like it."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("onnxscript", reason="requirements-dev.txt brings it")
onnx = pytest.importorskip("onnx", reason="requirements-dev.txt brings it")
onnxruntime = pytest.importorskip("onnxruntime", reason="requirements-dev.txt brings it")

from helpers import SETTINGS  # noqa: E402

from mtl_utils.cli.evaluate import evaluate_command, open_model  # noqa: E402
from mtl_utils.cli.main import main  # noqa: E402
from mtl_utils.data import MiniSet, read_image  # noqa: E402
from mtl_utils.evaluation import evaluate, predict  # noqa: E402
from mtl_utils.export.onnx_read import OnnxModel  # noqa: E402
from mtl_utils.export.onnx_write import exportable  # noqa: E402
from mtl_utils.files import PROJECT, UserError  # noqa: E402
from mtl_utils.tasks import TASKS, VOC_CLASSES  # noqa: E402

SIDES = [(1, 64, 96), (3, 96, 64), (2, 128, 128)]  # number of inputs, height, width
LARGEST_DIFFERENCE = 1e-4  # of any output, which are of the order of 1


@pytest.fixture(scope="module")
def weights(trained_run, tmp_path_factory):
    """The trained weights under a name with a space, as people have them."""
    path = tmp_path_factory.mktemp("exported") / "my weights.pt"
    path.write_bytes(trained_run.path("cls").read_bytes())
    return path


@pytest.fixture(scope="module")
def exported(weights):
    assert main(["export", str(weights)]) == 0
    return weights.with_suffix(".onnx")


def inputs(number, height, width):
    generator = torch.Generator().manual_seed(number)
    images = torch.rand(number, 3, height, width, generator=generator)
    content = torch.tensor([0.0, 0.0, width, height]).repeat(number, 1)
    content[0, 2] = width - 20  # a letterboxed picture
    return images, content


@pytest.mark.parametrize("shape", SIDES)
def test_every_output_is_the_networks(exported, trained_run, shape):
    images, content = inputs(*shape)
    with torch.inference_mode():
        expected = trained_run.model("cls")(images, content)
    found = OnnxModel(exported)(images, content)
    for name in expected._fields:
        assert torch.allclose(getattr(found, name), getattr(expected, name), atol=LARGEST_DIFFERENCE), name
    without = OnnxModel(exported)(images, torch.tensor([[0.0, 0.0, shape[2], shape[1]]]).repeat(shape[0], 1))
    assert not torch.allclose(without.classification[0], found.classification[0]), "the padding counts"


def test_the_copy_that_is_exported_gives_the_same_and_leaves_the_network_alone(trained_run):
    model = trained_run.model("cls")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images, content = inputs(2, 64, 96)
    with torch.inference_mode():
        expected = model(images, content)
        found = exportable(model)(images, content)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, expected, strict=True))
    assert before.keys() == model.state_dict().keys()


def test_no_operator_moves_values_that_the_network_leaves_in_place(exported):
    """Functionalised, in-place activations and dropped outputs became Transpose and ScatterND: half of the time."""
    operators = {node.op_type for node in onnx.load(str(exported)).graph.node}
    assert "Conv" in operators and "ScatterND" not in operators


def test_metrics_are_the_networks(exported, trained_run, tiny_root):
    datasets = [MiniSet(task, tiny_root, "val", trained_run.classes) for task in TASKS]
    expected = evaluate(trained_run.model("cls"), datasets, SETTINGS.eval_size)
    model, classes, eval_size = open_model(exported)
    assert classes == trained_run.classes and eval_size == SETTINGS.eval_size
    found = evaluate(model, datasets, eval_size)
    for task in TASKS:
        assert found[task].value == pytest.approx(expected[task].value, abs=0.002)


def test_marking_reads_it(exported, weights, tiny_root, capsys):
    marks = []
    for path in (weights, exported):
        assert evaluate_command(["--weights", str(path), "--data_root", str(tiny_root)]) == 0
        marks.append(capsys.readouterr().out)
    assert marks[0] == marks[1]
    assert marks[0].startswith("mAP:")


def test_its_metadata_name_the_classes(exported, trained_run):
    about = onnxruntime.InferenceSession(str(exported)).get_modelmeta().custom_metadata_map
    names = json.loads(about["names"])
    assert names == {
        "seg": list(VOC_CLASSES),
        "det": trained_run.classes.names("det"),
        "cls": trained_run.classes.names("cls"),
    }


def test_eight_bits_are_a_quarter_of_the_size_and_near(weights, trained_run, tiny_root, tmp_path, capsys):
    out = tmp_path / "model.onnx"
    assert main(["export", str(weights), "--out", str(out), "--int8", "--data-root", str(tiny_root)]) == 0
    small = tmp_path / "model.int8.onnx"
    assert str(small) in capsys.readouterr().out
    assert small.stat().st_size < 0.5 * out.stat().st_size
    images, content = inputs(1, 64, 64)
    exact = OnnxModel(out)(images, content).segmentation
    rounded = OnnxModel(small)(images, content).segmentation
    assert not torch.equal(rounded, exact)
    assert (rounded - exact).abs().mean() < 0.25 * exact.std()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no model", b"\x08\x07" + 100 * b"x"])
def test_anything_else_ends_in_a_sentence(tmp_path, content):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.onnx is no ONNX file that can be read: make one with"):
        OnnxModel(path)
    with pytest.raises(UserError, match="is no file"):
        OnnxModel(tmp_path)


def test_the_model_of_somebody_else_is_refused(tmp_path):
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", [value], [
        onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    ])  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    path = tmp_path / "other.onnx"
    onnx.save(model, str(path))
    with pytest.raises(UserError, match="was not exported by this project"):
        OnnxModel(path)


USES = ("import mtl_utils.export.onnx_read", "import runpy; runpy.run_path('predict_onnx.py')")


@pytest.mark.parametrize("line", USES)
def test_onnxruntime_reports_nothing_to_its_maker(line):
    """Nothing of the project uses the network unasked."""
    lines = "import onnxruntime\nonnxruntime.disable_telemetry_events = lambda: print('switched off')\n"
    lines += f"try:\n    {line}\nexcept IndexError:\n    pass  # the program has no arguments here"
    done = subprocess.run([sys.executable, "-c", lines], cwd=PROJECT, capture_output=True, text=True)
    assert done.stdout == "switched off\n", done.stderr


def test_the_program_without_torch_predicts_what_the_module_predicts(exported, trained_run, tiny_root):
    """It letterboxes, reads boxes and enlarges masks by itself, with numpy and Pillow."""
    photo = next((tiny_root / "mini_coco_det" / "val").glob("*.jpg"))
    lines = "import runpy, sys\nsys.argv = sys.argv[1:]\nmodule = runpy.run_path(sys.argv[0])\n"
    lines += "assert 'torch' not in sys.modules\n"
    lines += (
        "import numpy\nnumpy.savez(sys.argv[3], mask=module['mask'], scores=module['scores'], boxes=module['boxes'])"
    )
    found_path = exported.with_name("found.npz")
    words = [sys.executable, "-c", lines, PROJECT / "predict_onnx.py", exported, photo, found_path]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = np.load(found_path)
    image = read_image(photo)
    (expected,) = predict(trained_run.model("cls"), [image], SETTINGS.eval_size)
    assert found["mask"].shape == tuple(image.shape[1:])
    assert (found["mask"] == expected.mask.numpy()).mean() > 0.99
    assert np.allclose(found["scores"][0], expected.detections["scores"][0], atol=0.01)
    assert re.search(r"^mask: .*\n(box: .*\n)*class: ", done.stdout)
