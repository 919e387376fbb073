"""Where a new model's weights come from, and that they arrive where they belong."""

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from helpers import CLASSES, no_waiting
from torch import nn
from torchvision.models import mobilenet_v2

from mtl_utils import checkpoint, files, weights
from mtl_utils.files import UserError
from mtl_utils.model import UnifiedModel
from mtl_utils.prepare.root import Root
from mtl_utils.run import Run, load_model
from mtl_utils.settings import get_settings
from mtl_utils.stages import run_stage


@pytest.fixture
def start(tmp_path, monkeypatch):
    """The file that a new model starts from: a copy of the committed one that a test may damage, without a card."""
    path = tmp_path / "lite0.pt"
    path.write_bytes(files.START_WEIGHTS.read_bytes())
    monkeypatch.setattr(files, "START_WEIGHTS", path)
    monkeypatch.delenv(weights.VARIABLE, raising=False)
    return path


def start_model(model) -> str:
    """Load into a model what it should start from; returns the label."""
    found = weights.find_starting_weights()
    weights.load_starting_weights(model, found)
    return found.label


def digest_of(path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def norms(module: nn.Module) -> int:
    return sum(isinstance(layer, nn.BatchNorm2d) for layer in module.modules())


def test_the_committed_weights_are_what_their_card_says(monkeypatch):
    monkeypatch.delenv(weights.VARIABLE, raising=False)
    card = json.loads(files.START_WEIGHTS.with_suffix(".json").read_text())
    assert card["sha256"] == digest_of(files.START_WEIGHTS)
    assert weights.find_starting_weights().label == f"efficientnet_lite0.pt {card['sha256'][:12]}"


def test_the_label_says_which_file_and_which_content(start):
    assert weights.find_starting_weights().label == f"lite0.pt {digest_of(start)[:12]}"


def test_public_weights_arrive_in_the_trunk_only(start):
    torch.manual_seed(3)
    untouched = UnifiedModel(3, 3).state_dict()
    torch.manual_seed(3)
    model = UnifiedModel(3, 3)
    start_model(model)
    assert model.has_imagenet_trunk and norms(model.backbone.trunk) == 0 and norms(model) > 0
    above = {name: value for name, value in model.state_dict().items() if not name.startswith("backbone.trunk.")}
    assert above and all(torch.equal(value, untouched[name]) for name, value in above.items())
    folded = torch.load(start, weights_only=True)
    factor = folded["_bn1.weight"] / (folded["_bn1.running_var"] + 1e-3).sqrt()
    expected = folded["_conv_head.weight"].float() * factor[:, None, None, None]
    assert torch.allclose(model.backbone.trunk.global32[-1][0].weight, expected, rtol=1e-4, atol=1e-6)
    assert all(p.requires_grad for p in model.parameters())


def test_nothing_is_a_start_from_random_numbers(start, monkeypatch):
    monkeypatch.setenv(weights.VARIABLE, weights.NOTHING)
    torch.manual_seed(3)
    untouched = UnifiedModel(3, 3).state_dict()
    torch.manual_seed(3)
    model = UnifiedModel(3, 3)
    assert start_model(model) == "nothing" and not model.has_imagenet_trunk
    assert all(torch.equal(value, untouched[name]) for name, value in model.state_dict().items())


def test_a_named_file_goes_before_the_one_that_the_project_holds(start, monkeypatch):
    own = start.with_name("own.pt")
    own.write_bytes(start.read_bytes())
    monkeypatch.setenv(weights.VARIABLE, str(own))
    start.unlink()
    assert weights.find_starting_weights().label == f"own.pt {digest_of(own)[:12]}"


def test_a_file_that_is_not_what_its_card_says_is_refused(start):
    start.with_suffix(".json").write_text(json.dumps({"sha256": digest_of(start)}))
    assert weights.find_starting_weights().label.startswith("lite0.pt ")
    expected = digest_of(start)[:12]
    start.write_bytes(start.read_bytes()[:-1] + b"!")
    with pytest.raises(UserError, match=rf"lite0\.pt is damaged: its SHA-256 is not {expected}\.\.\.; restore it"):
        weights.find_starting_weights()


def test_a_json_without_a_hash_is_no_card(start):
    """That of a stage lies beside its weights, which may be named to start from."""
    start.with_suffix(".json").write_text(json.dumps({"key": {}, "history": []}))
    assert weights.find_starting_weights().label == f"lite0.pt {digest_of(start)[:12]}"


def test_start_weights_with_a_changed_byte_are_refused_without_a_card(start):
    data = bytearray(start.read_bytes())
    data[len(data) // 2] ^= 1
    start.write_bytes(data)
    with pytest.raises(UserError, match=r"lite0\.pt is not a weights file \(it is damaged, .*\): name another in MTL_"):
        weights.find_starting_weights()


@pytest.mark.parametrize("is_archive", [True, False])
def test_start_weights_that_are_not_finite_are_refused(start, is_archive):
    """In archives, and in the files of before 2020, of which the published one may be."""
    state = torch.load(start, weights_only=True)
    torch.save(state, start, _use_new_zipfile_serialization=is_archive)
    found = weights.find_starting_weights().content
    assert all(torch.equal(found[name], value) for name, value in state.items())
    state["_bn1.weight"][0] = float("nan")
    torch.save(state, start, _use_new_zipfile_serialization=is_archive)
    with pytest.raises(UserError, match=r"is not a weights file \(its tensor '_bn1\.weight' holds values that"):
        weights.find_starting_weights()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pipes in folders")
def test_a_pipe_is_not_waited_for(start):
    start.unlink()
    os.mkfifo(start)
    with (
        no_waiting(),
        pytest.raises(UserError, match=r"cannot be read \(it is a folder, a pipe or a device\)"),
    ):
        weights.find_starting_weights()


@pytest.mark.parametrize(("content", "message"), [(b"garbage", "is not a weights file"), (None, "cannot be read")])
@pytest.mark.parametrize("named", [True, False])
def test_a_file_that_cannot_be_used_is_named(start, monkeypatch, content, message, named):
    path = start.with_name("mine.pt") if named else start
    start.unlink()
    if content:
        path.write_bytes(content)
    if named:
        monkeypatch.setenv(weights.VARIABLE, str(path))
    with pytest.raises(UserError, match=f"{path.name} {message}.*name another.* in MTL_IMAGENET_WEIGHTS"):
        weights.find_starting_weights()


@pytest.mark.parametrize("content", [mobilenet_v2(weights=None).state_dict(), {}, torch.zeros(3), {"a": "text"}])
def test_weights_of_another_network_are_refused(start, content):
    """It never starts from random numbers instead."""
    torch.save(content, start)
    with pytest.raises(UserError, match=r"^lite0\.pt \w{12} holds no weights of EfficientNet-Lite0: name another"):
        start_model(UnifiedModel(3, 3))


def test_a_run_opens_its_weights_file_once(start, tiny_root, tmp_path, monkeypatch):
    opened = []
    read_bytes = weights.read_bytes
    monkeypatch.setattr(weights, "read_bytes", lambda path: opened.append(path.name) or read_bytes(path))
    sizes = dict(seg=64, det=64, cls=32)
    settings = get_settings("smoke", train_size=sizes, eval_size=64, epochs=dict(seg=1, det=1, cls=1))
    run = Run(settings, tmp_path / "run", Root(tiny_root, "--data-root"))
    run_stage(run, "det")
    assert opened == ["lite0.pt"]
    assert run.key("seg").initial_weights == f"lite0.pt {digest_of(start)[:12]}"
    model, _ = load_model(run.path("det"))
    assert model.has_imagenet_trunk


# ---------------------------------------------------------------- a trained model


@pytest.fixture
def trained(tmp_path) -> Path:
    """A file as a stage writes it, of an untrained model."""
    path = tmp_path / "three.pt"
    state = checkpoint.halved(UnifiedModel(3, 3).state_dict())
    content = {"classes": CLASSES.as_dict(), "settings": {"eval_size": 64}, "initial_weights": "nothing"}
    checkpoint.save(path, content | {"model": state})
    return path


SPOILED = {
    "no settings": lambda content: content.pop("settings"),
    "no size": lambda content: content["settings"].clear(),
    "size 0": lambda content: content["settings"].update(eval_size=0),
    "odd size": lambda content: content["settings"].update(eval_size=447),
    "size as text": lambda content: content["settings"].update(eval_size="448"),
    "huge size": lambda content: content["settings"].update(eval_size=32 * 10**6),
    "classes are numbers": lambda content: content["classes"].update(cls=[1, 2, 3]),
    "an id too few": lambda content: content["classes"].update(det_ids=[7, 42]),
    "whole numbers": lambda content: content["model"].update({"head.2.bias": content["model"]["head.2.bias"].char()}),
}


@pytest.mark.parametrize("kind", SPOILED)
def test_what_marking_needs_beside_the_weights_is_looked_at(trained, kind):
    content = checkpoint.load(trained)
    SPOILED[kind](content)
    checkpoint.save(trained, content)
    with pytest.raises(UserError, match=r"three\.pt holds no model that this version can build.*take one that it has"):
        load_model(trained)


def change_state(path: Path, change) -> None:
    """Apply `change` to a saved model's state dict."""
    content = checkpoint.load(path)
    change(content["model"])
    checkpoint.save(path, content)


def test_a_model_is_what_its_card_says(trained):
    card = trained.with_suffix(".json")
    card.write_text(json.dumps({"sha256": digest_of(trained)}))
    load_model(trained)
    expected = digest_of(trained)[:12]
    change_state(trained, lambda state: state["head.2.bias"].add_(1))
    with pytest.raises(UserError, match=rf"three\.pt is damaged: its SHA-256 is not {expected}\.\.\.; restore it\.$"):
        load_model(trained)
    card.write_text(json.dumps({"key": {}, "history": []}))  # a stage's own JSON
    load_model(trained)


def rename_all(state) -> None:
    for name in list(state):
        state[f"module.{name}"] = state.pop(name)


CHANGES = {
    "shape": (
        lambda state: state.update({"head.2.bias": torch.zeros(5)}),
        r"\('head\.2\.bias' is \(5,\) instead of \(32,\)\): take one",
    ),
    "missing": (lambda state: state.pop("head.2.bias"), r"\('head\.2\.bias' is missing\): take one"),
    "unexpected": (lambda state: state.update(extra=torch.zeros(1)), r"\('extra' is not known\): take one"),
    "no tensor": (
        lambda state: state.update({"head.2.bias": "text"}),
        r"\('head\.2\.bias' is no tensor instead of \(32,\)\): take one",
    ),
    "all": (rename_all, r"\('\S+' is missing, '\S+' is missing, '\S+' is missing and \d{3} more\): take one"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_weights_of_another_model_are_named(trained, kind):
    change, message = CHANGES[kind]
    load_model(trained)
    change_state(trained, change)
    with pytest.raises(UserError, match=rf"three\.pt holds no model that this version can build {message}") as error:
        load_model(trained)
    assert "\n" not in str(error.value)
