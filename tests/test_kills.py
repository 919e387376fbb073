"""A process that is killed, at any moment at which a file is written, loses no finished epoch and changes no weight."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import SETTINGS

from mtl_utils import environment, files, stages
from mtl_utils.prepare.root import Root
from mtl_utils.run import Run
from mtl_utils.stages import run_stage

TASKS = ["seg", "det"]
KILLED_AT = replace(
    SETTINGS, tasks=TASKS, epochs=dict(seg=2, det=1, cls=1), ewc_weight=1.0
)  # EWC adds up across stages

pytestmark = pytest.mark.slow


class Killed(BaseException):
    """Stands for SIGKILL: nothing may catch it."""


class Killer:
    """Kills at the n-th replacement of a file, before or after it; what lies half-written is left there."""

    def __init__(self, number: int, after: bool):
        self.number = number
        self.after = after
        self.seen = 0
        self.replace = os.replace

    def __call__(self, source, target):
        self.seen += 1
        fatal = self.seen == self.number
        if fatal and not self.after:
            raise Killed
        self.replace(source, target)
        if fatal:
            raise Killed


def make_run(root, folder):
    return Run(KILLED_AT, folder, Root(root, "--data-root"))


def train(run):
    for task in TASKS:
        run_stage(run, task)


def content(run):
    """All that a run hands on: weights, buffer and Fisher information, and every number but the times."""
    found = {}
    for task in TASKS:
        found[task, "weights"] = run.model(task).state_dict()
        state = torch.load(run.path(task, ".state.pt"), weights_only=True)
        found[task, "fisher"] = state["buffer"]["fisher"]
        result = run.result(task)
        found[task, "loss"] = [record.loss for record in result.history]
        found[task, "metrics"] = {name: metrics.value for name, metrics in result.metrics.items()}
    return found


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, dict) and value and all(isinstance(each, torch.Tensor) for each in value.values()):
            assert found[name].keys() == value.keys()
            assert all(torch.equal(found[name][key], each) for key, each in value.items()), name
        else:
            assert found[name] == value, name


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Sums of several threads differ in their last digit from run to run; with one, all that is equal is so exactly."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def undisturbed(tiny_root, tmp_path_factory, one_thread):
    """What a run hands on that nothing has stopped, and how many files it replaces."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(environment.IMAGENET_WEIGHTS, "nothing")
        counter = Killer(number=0, after=False)
        patch.setattr(files.os, "replace", counter)
        run = make_run(tiny_root, tmp_path_factory.mktemp("undisturbed") / "run")
        train(run)
        return content(run), counter.seen


def test_a_kill_at_any_write_costs_nothing(undisturbed, tiny_root, tmp_path, monkeypatch):
    monkeypatch.setenv(environment.IMAGENET_WEIGHTS, "nothing")
    expected, writes = undisturbed
    assert writes >= 12, "states, results, weights and metrics of two stages"
    unlink = Path.unlink
    # after one write is before the next, so that only the last one is asked about on both sides
    moments = [(number, False) for number in range(1, writes + 1)] + [(writes, True)]
    for number, after in moments:
        folder = tmp_path / f"{number}-{after}"
        with monkeypatch.context() as patch:
            patch.setattr(files.os, "replace", Killer(number, after))
            patch.setattr(Path, "unlink", lambda path, **options: path.suffix == ".part" or unlink(path, **options))
            with pytest.raises(Killed):
                train(make_run(tiny_root, folder))
        repeated = count_epochs(monkeypatch, tiny_root, folder)
        assert repeated <= 1, f"killed at write {number}, after it: {after}"
        run = make_run(tiny_root, folder)
        assert_same(content(run), expected)
        assert not list(folder.glob("*.part"))


def count_epochs(monkeypatch, root, folder):
    """Continue a run to its end; how many epochs are trained that its folder held before."""
    held = 0
    for task in TASKS:
        result = make_run(root, folder).result(task)
        held += len(result.history) if result else 0
    trained = []
    epoch = stages.Trainer.epoch
    with monkeypatch.context() as patch:
        patch.setattr(stages.Trainer, "epoch", lambda self, bar=None: trained.append(1) or epoch(self, bar))
        train(make_run(root, folder))
    return held + len(trained) - sum(KILLED_AT.epochs[task] for task in TASKS)
