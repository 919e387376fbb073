"""A process that is killed, at any moment at which a file is written, loses no finished epoch and changes no weight.

The last test kills processes for real, at random moments: MTL_KILLS of them (default 3), `make kills` many.
"""

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import SETTINGS

from mtl_utils import checkpoint, environment, files, stages
from mtl_utils.files import PROJECT
from mtl_utils.prepare.root import Root
from mtl_utils.run import Run
from mtl_utils.settings import get_settings
from mtl_utils.stages import run_stage

KILLS = int(os.environ.get("MTL_KILLS", 3))
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


# ---------------------------------------------------------------- real processes


def start_training(root, runs, name):
    """A process that begins or continues a run on one thread, whose sums are always added up in the same order."""
    variables = os.environ | {
        environment.RUNS: str(runs),
        environment.IMAGENET_WEIGHTS: "nothing",
        "OMP_NUM_THREADS": "1",
    }
    words = ["train", "--profile", "smoke", "--tasks", ",".join(TASKS), "--data-root", root, "--name", name, "--resume"]
    command = [sys.executable, "-m", "mtl_utils", *map(str, words)]
    return subprocess.Popen(command, cwd=PROJECT, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def opened(root, folder):
    return Run(get_settings("smoke", tasks=TASKS), folder, Root(root, "--data-root"))


def epochs_held(run):
    """Epochs that a run's folder holds, of finished stages and of the one that was stopped."""
    held = 0
    for task in TASKS:
        result = run.result(task)
        state = run.path(task, ".state.pt")
        if result:
            held += len(result.history)
        elif state.exists():
            held += len(checkpoint.load(state).get("history", []))
    return held


def test_real_processes_killed_at_random_moments_lose_nothing(tiny_root, tmp_path, monkeypatch):
    monkeypatch.setenv(environment.IMAGENET_WEIGHTS, "nothing")
    started = time.monotonic()
    assert start_training(tiny_root, tmp_path, "whole").wait() == 0
    seconds = time.monotonic() - started
    expected = content(opened(tiny_root, tmp_path / "whole"))
    moments = random.Random(0)
    killed = number = 0
    while killed < KILLS:
        number += 1
        run = opened(tiny_root, tmp_path / f"run {number}")
        code, held = None, 0
        while code != 0:
            process = start_training(tiny_root, tmp_path, run.folder.name)
            try:
                _, complaint = process.communicate(timeout=moments.uniform(0, seconds))
            except subprocess.TimeoutExpired:
                process.kill()
                _, complaint = process.communicate()
            code = process.returncode
            assert code in (0, -signal.SIGKILL), complaint.decode()
            killed += code == -signal.SIGKILL
            assert epochs_held(run) >= held, "an epoch that was finished is gone"
            held = epochs_held(run)
        assert_same(content(run), expected)
        assert not list(run.folder.glob("*.part"))
    print(f"{killed} processes killed in {number} runs of {seconds:.0f} s")
