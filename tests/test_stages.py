"""What a stage records while it trains, and which weights it hands on."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from helpers import task_metrics

from mtl_utils import run as run_module
from mtl_utils import stages, weights
from mtl_utils.prepare.root import Root
from mtl_utils.run import Run
from mtl_utils.settings import PROFILES
from mtl_utils.stages import run_stage
from mtl_utils.training import BestEpoch, Remedy

SETTINGS = replace(
    PROFILES["smoke"], widths="paper", train_size=dict(seg=64, det=64, cls=32), batch_size=dict(seg=6, det=6, cls=10)
)


@pytest.fixture(autouse=True)
def without_imagenet_weights(monkeypatch):
    monkeypatch.setenv(weights.VARIABLE, weights.NOTHING)


def make_run(root, folder, **changes):
    return Run(replace(SETTINGS, **changes), folder, Root(root, "--data-root"))


def test_a_stage_hands_on_its_best_weights_and_not_the_last_average(tiny_root, tmp_path):
    """The trainer here has no average at all, so nothing but `best` can be handed on."""
    run = make_run(tiny_root, tmp_path, fold_batchnorm=False)
    state = run_module.build(run.settings, run.classes).state_dict()
    shifted = {name: value + 1 if value.is_floating_point() else value for name, value in state.items()}
    best = BestEpoch(epoch=1, loss=1.0, weights=shifted)
    handed_on = stages.best_model(run, SimpleNamespace(best=best)).state_dict()
    assert handed_on.keys() == shifted.keys()
    for name, value in shifted.items():
        expected = value.half().float() if value.is_floating_point() else value
        assert torch.equal(handed_on[name].cpu(), expected), name


def test_val_is_measured_every_few_epochs_and_in_the_last(tiny_root, tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "evaluate", lambda model, data, size: task_metrics(data.task, 0.5))
    run = make_run(tiny_root, tmp_path, tasks=["cls"], epochs=dict(seg=1, det=1, cls=5), eval_every=2)
    history = run_stage(run, "cls").history
    assert [record.epoch for record in history] == [1, 2, 3, 4, 5]
    assert [record.epoch for record in history if record.val is not None] == [2, 4, 5]


class Recorder(Remedy):
    """Keeps what `after_stage` is called with."""

    def __init__(self, calls):
        self.calls = calls

    def after_stage(self, trainer, model):
        self.calls.append((trainer.task, sorted(trainer.buffer.samples), model.training))


def test_remedies_are_called_after_every_stage_but_the_last(tiny_root, tmp_path, monkeypatch):
    """By then the stage's exemplars are in the buffer, and the model is the one that is handed on."""
    calls = []
    monkeypatch.setattr(stages, "make_remedies", lambda *_: [Recorder(calls)])
    monkeypatch.setattr(stages, "evaluate", lambda model, data, size: task_metrics(data.task, 0.5))
    run = make_run(tiny_root, tmp_path, tasks=["seg", "det"], epochs=dict(seg=1, det=1, cls=1))
    run_stage(run, "det")
    assert calls == [("seg", ["seg"], False)]


def test_the_callback_is_called_when_the_epoch_is_saved(tiny_root, tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "evaluate", lambda model, data, size: task_metrics(data.task, 0.5))
    run = make_run(tiny_root, tmp_path, tasks=["cls"], epochs=dict(seg=1, det=1, cls=2))
    saved = []
    run_stage(run, "cls", lambda trainer: saved.append((len(trainer.history), len(run.result("cls").history))))
    assert saved == [(1, 1), (2, 2)]
