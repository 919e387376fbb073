"""Keeping what stage 0 knows: the teacher, its loss, and what it does to a model that learns something else."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torchvision.models import mobilenet_v2

from mtl_utils import checkpoint, distill, pretrained, training
from mtl_utils.data import MiniSet, find_classes
from mtl_utils.model import UnifiedModel, fold_batchnorm
from mtl_utils.replay import ReplayBuffer
from mtl_utils.settings import Settings

SETTINGS = Settings(
    widths="paper",
    size=dict(seg=64, det=64, cls=64),
    epochs=dict(seg=2, det=2, cls=2),
    batch=dict(seg=4, det=4, cls=4),
)


@pytest.fixture
def content(tmp_path, monkeypatch):
    """What stage 0 has left in a file: a random network and a random classifier of five classes."""
    model = UnifiedModel("paper", 1, 1)
    fold_batchnorm(model)
    below = {k: v for k, v in model.state_dict().items() if not k.startswith("head.2.")}
    classifier = nn.Linear(128, 5)
    nn.init.normal_(classifier.weight)
    content = {"model": below, "classifier": classifier.state_dict(), "classes": list("abcde"), "widths": "paper"}
    checkpoint.save(tmp_path / "stage0_paper.pt", content)
    monkeypatch.setenv(pretrained.VARIABLE, str(tmp_path / "stage0_paper.pt"))
    return content


def test_the_teacher_says_what_stage_0_says(content):
    model = UnifiedModel("paper", 3, 3)
    pretrained.start(model)
    images = torch.rand(2, 3, 64, 96)
    logits = pretrained.classifier(content)(model.eval().hidden(images).mean((2, 3)))
    wanted = torch.softmax(logits / distill.TEMPERATURE, dim=1)
    assert torch.allclose(distill.Teacher(content).targets(images).exp(), wanted, atol=1e-5)


def test_the_loss_is_the_divergence_times_the_squared_temperature(content, monkeypatch):
    """Teacher 3/4 and 1/4 against a student that says 1/2 and 1/2: .75 ln 1.5 + .25 ln .5, times 4."""
    teacher = distill.Teacher(content)
    monkeypatch.setattr(teacher, "targets", lambda images: torch.tensor([[0.75, 0.25]]).log())
    monkeypatch.setattr(teacher, "read", lambda hidden: torch.tensor([[0.5, 0.5]]).log())
    wanted = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert teacher.loss(torch.zeros(1), torch.zeros(1)).item() == pytest.approx(wanted)


def test_a_network_that_still_says_the_same_has_no_loss_and_another_has(content):
    teacher, images = distill.Teacher(content), torch.rand(2, 3, 64, 64)
    hidden = teacher.model.hidden(images).requires_grad_()
    assert teacher.loss(images, hidden).item() == pytest.approx(0, abs=1e-6)
    loss = teacher.loss(images, hidden * 1.5)
    loss.backward()
    assert loss > 0 and hidden.grad.abs().max() > 0
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())


def test_large_images_are_shown_to_the_teacher_at_its_own_size(content, monkeypatch):
    teacher, seen = distill.Teacher(content), []
    monkeypatch.setattr(teacher.model, "hidden", lambda images: seen.append(images.shape) or torch.zeros(1, 128, 1, 1))
    teacher.targets(torch.rand(1, 3, 320, 320))
    teacher.targets(torch.rand(1, 3, 96, 64))
    assert seen == [(1, 3, 160, 160), (1, 3, 96, 64)]


def test_there_is_no_teacher_without_stage_0(content, tmp_path, monkeypatch):
    assert distill.find_teacher(SETTINGS) is not None
    assert distill.find_teacher(replace(SETTINGS, distill=0.0)) is None
    assert distill.find_teacher(replace(SETTINGS, widths="mobilenetv2")) is None
    torch.save(mobilenet_v2(weights=None).state_dict(), tmp_path / "public.pt")
    monkeypatch.setenv(pretrained.VARIABLE, str(tmp_path / "public.pt"))
    assert distill.find_teacher(replace(SETTINGS, widths="mobilenetv2")) is None
    monkeypatch.setenv(pretrained.VARIABLE, pretrained.NOTHING)
    assert distill.find_teacher(SETTINGS) is None


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_training_on_a_new_task_keeps_what_stage_0_says_only_with_the_loss(content, weight, tiny_root):
    """The network drifts a long way from the teacher in a few steps of segmentation, or hardly at all."""
    model = UnifiedModel("paper", 10, 10)
    pretrained.start(model)
    settings = replace(SETTINGS, distill=weight, weight_decay=0.0, lr=dict(seg=3e-3, det=1e-3, cls=1e-3), warmup=0)
    settings = replace(settings, epochs=dict(seg=30, det=1, cls=1))
    data = MiniSet("seg", tiny_root, "train", find_classes(tiny_root))
    trainer = training.Trainer(model, data, ReplayBuffer(0), settings, "cpu")
    while not trainer.finished:
        trainer.epoch()
    images = torch.stack([training.collate([s], trainer.transform("seg"), "seg")[0][0] for s in data])
    drift = distill.Teacher(content).loss(images, model.eval().hidden(images)).item()
    assert (drift < 0.1) == bool(weight), drift
