"""Where a new model's weights come from, and that they arrive where they belong."""

import hashlib
import json

import pytest
import torch
from torchvision.models import mobilenet_v2

from mtl_utils import checkpoint, files, weights
from mtl_utils.files import UserError
from mtl_utils.model import ConvNorm, UnifiedModel, fold_batchnorm
from mtl_utils.prepare.root import Root
from mtl_utils.run import Run
from mtl_utils.settings import get_settings
from mtl_utils.stages import run_stage


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty data/weights/, and no wish of the user's."""
    monkeypatch.setattr(files, "WEIGHTS_FOLDER", tmp_path)
    monkeypatch.delenv(weights.VARIABLE, raising=False)
    return tmp_path


def save_stage0(path, widths="paper", seed=5) -> UnifiedModel:
    """A model that is saved as stage 0 saves it, with a random classifier of five classes."""
    torch.manual_seed(seed)
    model = UnifiedModel(widths, 3, 3)
    fold_batchnorm(model)
    below = {k: v for k, v in model.state_dict().items() if k.split(".")[:2] != ["head", "2"]}
    classifier = {"weight": torch.randn(5, 256), "bias": torch.randn(5)}
    parts = {"model": checkpoint.halved(below), "classifier": checkpoint.halved(classifier)}
    checkpoint.save(path, parts | {"classes": ["n0", "n1", "n2", "n3", "n4"], "widths": widths})
    return model


def start_model(model, classes=()) -> str:
    """Load into a model what it should start from; returns the label."""
    start = weights.find_starting_weights(model.widths)
    weights.load_starting_weights(model, start, classes)
    return start.label


def test_without_weights_the_label_is_nothing(folder):
    model = UnifiedModel("paper", 3, 3)
    assert start_model(model) == "nothing" and not model.has_imagenet_trunk


def test_stage_0_weights_arrive_layer_by_layer(folder):
    there = save_stage0(folder / "stage0_paper.pt")
    model = UnifiedModel("paper", 3, 3)
    assert start_model(model).startswith("stage0_paper.pt ") and model.has_imagenet_trunk
    mine = model.state_dict()
    assert mine.keys() == there.state_dict().keys()
    for name, value in there.state_dict().items():
        assert torch.equal(mine[name], value.half().float()) != name.startswith("head.2."), name
    assert all(p.requires_grad for p in model.parameters())


def test_classes_of_stage_0_start_as_its_classifier_reads_them(folder):
    save_stage0(folder / "stage0_paper.pt")
    model = UnifiedModel("paper", 3, 3).eval()
    before = model.head[-1].weight.clone(), model.head[-1].bias.clone()
    start_model(model, ("n3", "unknown", "n0"))
    classifier = weights.classifier(checkpoint.load(folder / "stage0_paper.pt"))
    images = torch.rand(2, 3, 64, 96)
    found, wanted = model(images).classification, classifier(model.head_features(images).mean((2, 3)))
    assert torch.allclose(found[:, [0, 2]], wanted[:, [3, 0]], atol=1e-5)
    untouched = [i for i in range(model.head[-1].out_channels) if i not in (8 + 21, 8 + 21 + 2)]
    assert torch.equal(model.head[-1].weight[untouched], before[0][untouched])
    assert torch.equal(model.head[-1].bias[untouched], before[1][untouched])


def test_only_weights_of_the_same_widths_are_taken(folder):
    save_stage0(folder / "stage0_paper.pt")
    assert weights.find_starting_weights("mobilenetv2").label == "nothing"
    assert weights.find_starting_weights("paper").label != "nothing"


def test_the_named_file_goes_before_data_weights_and_stage_0_before_the_public_weights(folder, monkeypatch):
    torch.save(mobilenet_v2(weights=None).state_dict(), folder / "mobilenet_v2-public.pt")
    assert weights.find_starting_weights("mobilenetv2").label.startswith("mobilenet_v2-public.pt ")
    save_stage0(folder / "stage0_mobilenetv2.pt", "mobilenetv2")
    assert weights.find_starting_weights("mobilenetv2").label.startswith("stage0_mobilenetv2.pt ")
    save_stage0(folder / "own.pt", "mobilenetv2", seed=6)
    monkeypatch.setenv(weights.VARIABLE, str(folder / "own.pt"))
    assert weights.find_starting_weights("mobilenetv2").label.startswith("own.pt ")
    monkeypatch.setenv(weights.VARIABLE, weights.NOTHING)
    assert weights.find_starting_weights("mobilenetv2").label == "nothing"


def test_public_weights_arrive_in_the_trunk_only(folder):
    theirs = mobilenet_v2(weights=None).eval()
    torch.save(theirs.state_dict(), folder / "mobilenet_v2.pt")
    model = UnifiedModel("mobilenetv2", 3, 3)
    start_model(model)
    image = torch.rand(1, 3, 64, 64)
    assert torch.allclose(model.eval().backbone.trunk(image)[2], theirs.features(image), atol=1e-4)
    kept = [block for block in model.backbone.pooling.modules() if isinstance(block, ConvNorm)]
    assert all(isinstance(block[1], torch.nn.BatchNorm2d) for block in kept)


def test_a_file_that_is_not_what_its_card_says_is_refused(folder):
    path = folder / "stage0_paper.pt"
    save_stage0(path)
    path.with_suffix(".json").write_text(json.dumps({"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}))
    assert weights.find_starting_weights("paper").label != "nothing"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(UserError, match="is damaged: its SHA-256 does not begin with"):
        start_model(UnifiedModel("paper", 3, 3))


def test_a_download_that_is_not_what_its_name_says_is_refused(folder):
    (folder / "mobilenet_v2-7ebf99e0.pth").write_bytes(b"half of it")
    with pytest.raises(UserError, match="does not begin with 7ebf99e0"):
        weights.find_starting_weights("mobilenetv2")


@pytest.mark.parametrize(("content", "message"), [(b"garbage", "is not a weights file"), (None, "cannot be read")])
def test_a_named_file_that_cannot_be_used_is_named(folder, monkeypatch, content, message):
    path = folder / "mine.pt"
    if content:
        path.write_bytes(content)
    monkeypatch.setenv(weights.VARIABLE, str(path))
    with pytest.raises(UserError, match=f"mine.pt .*{message}"):
        start_model(UnifiedModel("mobilenetv2", 3, 3))


@pytest.mark.parametrize(
    ("own", "widths", "message"),
    [("paper", "mobilenetv2", "widths paper, not mobilenetv2"), (None, "paper", "widths mobilenetv2, not paper")],
)
def test_a_named_file_of_other_widths_is_refused(folder, monkeypatch, own, widths, message):
    """It never starts from random numbers instead; None: torchvision's file, which names no widths."""
    path = folder / "mine.pt"
    if own:
        save_stage0(path, own)
    else:
        torch.save(mobilenet_v2(weights=None).state_dict(), path)
    monkeypatch.setenv(weights.VARIABLE, str(path))
    with pytest.raises(UserError) as error:
        weights.find_starting_weights(widths)
    remedy = f"name a file for {widths}, or unset MTL_IMAGENET_WEIGHTS."
    assert str(error.value) == f"{path} (from MTL_IMAGENET_WEIGHTS) holds weights for {message}: {remedy}"


@pytest.mark.parametrize("named", [True, False])
def test_the_variable_is_named_as_the_source_only_where_it_is(folder, monkeypatch, named):
    path = folder / "stage0_paper.pt"
    path.write_bytes(b"garbage")
    if named:
        monkeypatch.setenv(weights.VARIABLE, str(path))
    with pytest.raises(UserError, match="is not a weights file: name another in MTL_IMAGENET_WEIGHTS") as error:
        weights.find_starting_weights("paper")
    assert ("(from MTL_IMAGENET_WEIGHTS)" in str(error.value)) == named


def test_the_network_is_touched_only_when_told_to(folder, monkeypatch):
    asked = []

    def refuse(*_, **__):
        asked.append(1)
        raise OSError("no network")

    monkeypatch.setattr(weights.MobileNet_V2_Weights, "get_state_dict", refuse)
    assert weights.find_starting_weights("mobilenetv2").label == "nothing" and not asked
    monkeypatch.setenv(weights.VARIABLE, "download")
    with pytest.raises(UserError, match="could not be downloaded"):
        weights.find_starting_weights("mobilenetv2")
    assert asked


def test_a_run_opens_its_weights_file_once(folder, tiny_root, tmp_path, monkeypatch):
    save_stage0(folder / "stage0_paper.pt")
    opened = []
    read_bytes = weights.read_bytes
    monkeypatch.setattr(weights, "read_bytes", lambda path: opened.append(path.name) or read_bytes(path))
    sizes = dict(seg=64, det=64, cls=32)
    settings = get_settings(
        "smoke", widths="paper", train_size=sizes, eval_size=sizes, epochs=dict(seg=1, det=1, cls=1)
    )
    run = Run(settings, tmp_path / "run", Root(tiny_root, "--data-root"))
    run_stage(run, "det")
    assert opened == ["stage0_paper.pt"]
    assert run.key.initial_weights.startswith("stage0_paper.pt ")
