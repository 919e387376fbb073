"""What a stage records while it trains, and which weights it hands on."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from mtl_utils import run as run_module
from mtl_utils import stages, weights
from mtl_utils.prepare.root import Root
from mtl_utils.run import Run
from mtl_utils.settings import PROFILES
from mtl_utils.stages import run_stage
from mtl_utils.tasks import METRIC_NAMES

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
    found = stages.best_model(run, SimpleNamespace(best={"model": shifted})).state_dict()
    assert found.keys() == shifted.keys()
    for name, value in shifted.items():
        expected = value.half().float() if value.is_floating_point() else value
        assert torch.equal(found[name].cpu(), expected), name


def test_val_is_measured_every_few_epochs_and_in_the_last(tiny_root, tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "evaluate", lambda model, data, size: {METRIC_NAMES[data.task]: 0.5, "floor": 0.1})
    run = make_run(tiny_root, tmp_path, tasks=["cls"], epochs=dict(seg=1, det=1, cls=5), eval_every=2)
    history = run_stage(run, "cls")["history"]
    assert [entry["epoch"] for entry in history] == [1, 2, 3, 4, 5]
    assert [entry["epoch"] for entry in history if "val" in entry] == [2, 4, 5]
