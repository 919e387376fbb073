"""Cosines of gradients: two tasks with the same loss, with opposite ones, and what stays unchanged."""

import copy

import pytest
import torch
from helpers import SETTINGS

from mtl_utils.data import MiniSet, find_classes
from mtl_utils.experiments import gradients
from mtl_utils.model import UnifiedModel, fold_batchnorm
from mtl_utils.replay import ReplayBuffer
from mtl_utils.training import Trainer


@pytest.fixture
def trainer(tiny_root, monkeypatch):
    monkeypatch.setattr(gradients, "PAIRS", 2)
    monkeypatch.setattr(gradients, "SIZE", 64)
    classes = find_classes(tiny_root)
    torch.manual_seed(0)
    model = UnifiedModel(len(classes.det), len(classes.cls))
    fold_batchnorm(model)
    buffer = ReplayBuffer(4)
    buffer.store(MiniSet("seg", tiny_root, "train", classes), torch.Generator().manual_seed(0))
    return Trainer(model, MiniSet("det", tiny_root, "train", classes), buffer, SETTINGS, "cpu")


def energy(outputs, _targets):
    return outputs.segmentation.square().mean()


@pytest.mark.parametrize("sign", [1, -1])
def test_the_same_loss_agrees_and_its_opposite_conflicts(sign, trainer, monkeypatch):
    batch = gradients.draw(trainer, "seg", torch.Generator().manual_seed(0))
    monkeypatch.setattr(gradients, "draw", lambda *_: batch)  # the same images for both tasks
    trainer.losses = {"seg": energy, "det": lambda outputs, targets: sign * energy(outputs, targets)}
    found = gradients.cosines(trainer)
    assert list(found) == ["pooling", "fusion", "skip", "head, layer 1", "head, layer 2"]
    for values in found.values():
        assert values["detection"] == pytest.approx([sign, sign], abs=1e-4)
        assert values["other masks"] == pytest.approx([1, 1], abs=1e-4)
        assert max(map(abs, values["detection, shuffled"])) < 0.5


def test_nothing_is_learned(trainer):
    before = copy.deepcopy(trainer.model.state_dict())
    found = gradients.cosines(trainer)
    assert all(len(values) == 2 for part in found.values() for values in part.values())
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
