"""Processes that torchrun has started take the steps of one process, and end together."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from helpers import SETTINGS
from torch import nn

from mtl_utils import environment, processes
from mtl_utils.cli import main as cli_main
from mtl_utils.files import PROJECT, UserError
from mtl_utils.progress import progress
from mtl_utils.training import smallest_batch

SCRIPT = PROJECT / "tests" / "joint_steps.py"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
TRAIN = ["-m", "mtl_utils", "train", "--profile", "smoke", "--name", "joint"]


def of_steps(root, task, folder, count):
    """Losses and weights of ten steps in `count` processes."""
    out = folder / f"{count}" / "steps.json"
    out.parent.mkdir()
    launcher = [sys.executable] if count == 1 else [*TORCHRUN, str(count)]
    run_script([*launcher, SCRIPT, root, task, out])
    return json.loads(out.read_text())


def run_script(command):
    variables = os.environ | {"PYTHONPATH": str(PROJECT)}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


def assert_near(value, expected, tolerance):
    assert value.keys() == expected.keys()
    for name, number in expected.items():
        assert math.isclose(value[name], number, rel_tol=tolerance, abs_tol=tolerance), name


@pytest.mark.slow
@pytest.mark.parametrize(("task", "count", "tolerance"), [("seg", 2, 1e-2), ("det", 3, 1e-4)])
def test_several_processes_take_the_steps_of_one(task, count, tolerance, tiny_root, tmp_path):
    """Ten steps with BatchNorm's joint statistics; ten more with replay, distillation, DER++ and EWC.

    BatchNorm and AdamW, whose first steps have the size of the rate however small the gradient, enlarge rounding.
    """
    expected = of_steps(tiny_root, task, tmp_path, 1)
    found = of_steps(tiny_root, task, tmp_path, count)
    assert len(expected["losses"]) == 10
    for step, losses in enumerate(expected["losses"]):
        assert_near(found["losses"][step], losses, tolerance)
    if task == "det":  # it has no BatchNorm
        for name, distance in expected["moved"].items():
            assert abs(found["weights"][name] - expected["weights"][name]) <= 0.01 * distance, name


@pytest.mark.slow
def test_the_norm_over_two_processes_is_torchs_over_the_whole_batch(tmp_path):
    """Output, gradients of input and weights, and running statistics, with three rows here and two there."""
    script = tmp_path / "norm.py"
    script.write_text(NORM)
    values = []
    for launcher in ([sys.executable], [*TORCHRUN, "2"]):
        out = tmp_path / f"{len(values)}.pt"
        run_script([*launcher, script, out])
        values.append(torch.load(out))
    assert values[0]["kind"] == "BatchNorm2d" and values[1]["kind"] == "JointBatchNorm"
    for name in ("y", "x", "weight", "bias", "running_mean", "running_var"):
        torch.testing.assert_close(values[1][name], values[0][name], rtol=1e-5, atol=1e-5)
    assert values[1]["num_batches_tracked"] == 1


NORM = """
import sys
import torch
from torch import nn
from mtl_utils import processes

torch.manual_seed(0)
x, w = torch.randn(2, 5, 7, 4, 4)
norm = nn.BatchNorm2d(7)
nn.init.uniform_(norm.weight, 0.5, 2)
nn.init.normal_(norm.bias)
processes.join("cpu")
net = nn.Sequential(norm)
processes.join_batchnorm(net)
own = processes.own_rows(x).clone().requires_grad_()
y = processes.gather_rows(net(own), 5)
(y * w).square().sum().backward()
processes.average_gradients(net.parameters())
gradient = processes.gather_rows(own.grad, 5) / processes.count()
if processes.is_first():
    found = {"kind": type(net[0]).__name__, "y": y.detach(), "x": gradient}
    found |= {name: p.grad for name, p in net[0].named_parameters()} | dict(net[0].named_buffers())
    torch.save(found, sys.argv[1])
processes.leave()
"""


def train(root, runs, count, *options):
    """The command train in `count` processes of torchrun."""
    variables = os.environ | {environment.RUNS: str(runs), "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    command = [*TORCHRUN, str(count), *TRAIN, "--data-root", root, *options]
    return subprocess.Popen(command, env=variables, cwd=PROJECT, stdout=-1, stderr=-1, text=True)


@pytest.mark.slow
def test_a_killed_process_ends_all_and_the_same_line_continues(tiny_root, tmp_path):
    """Nobody waits for a process that is gone; a sentence says so, and what was finished is not trained again."""
    job = train(tiny_root, tmp_path, 2, "--tasks", "seg")
    history = tmp_path / "joint" / "stage1_segmentation.json"
    wait_until(history.exists, job)  # an epoch is finished
    children = subprocess.run(["pgrep", "-P", str(job.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(children[-1]), signal.SIGKILL)
    out, err = job.communicate(timeout=120)
    assert job.returncode != 0
    sentences = [line for line in err.splitlines() if line.startswith(("error:", "stopped"))]
    assert len(sentences) == 1, err
    out = finish(train(tiny_root, tmp_path, 2, "--tasks", "seg", "--resume"))
    assert "continuing segmentation after epoch" in out and out.count("done after") == 1


def finish(job):
    """What a job that goes well prints."""
    out, err = job.communicate(timeout=300)
    assert job.returncode == 0, err
    return out


@pytest.mark.slow
def test_a_finished_run_without_its_summary_is_summed_up_by_one_process(tiny_root, tmp_path):
    """The state that a kill between a stage's files leaves."""
    out = finish(train(tiny_root, tmp_path, 2))
    assert out.count("done after") == 3 and out.count("→ Final") == 1
    summary = tmp_path / "joint" / "metrics.json"
    before = json.loads(summary.read_text())
    summary.unlink()
    assert finish(train(tiny_root, tmp_path, 2, "--resume")).count("→ Final") == 1
    assert json.loads(summary.read_text()) == before


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="here the device is there")
def test_a_mistake_of_all_processes_is_said_once(tiny_root, tmp_path):
    job = train(tiny_root, tmp_path, 2, "--device", "cuda")
    _, err = job.communicate(timeout=300)
    assert job.returncode != 0 and err.count("error: There is no device 'cuda' here") == 1, err


@pytest.fixture
def one_of_two(monkeypatch):
    """The second of two processes of torchrun, which have not joined."""
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("words", [["run"], ["restart"], ["bench"]])
def test_what_processes_cannot_share_is_refused(words, one_of_two, capsys):
    assert cli_main.main(words) == 1
    assert capsys.readouterr().err.startswith("error: torchrun can start the commands train and study alone")


def test_gpus_that_cannot_be_shared_are_refused(one_of_two, monkeypatch):
    with pytest.raises(UserError, match="torchrun cannot share a Mac's GPU"):
        processes.join("mps")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="There are 1 GPUs: start torchrun with --nproc-per-node 1 or less"):
        processes.join("cuda")


def test_a_process_with_work_of_its_own_has_a_bar(one_of_two):
    """As those of a study have."""
    with progress(total=3) as bar:
        assert not bar.disable
    assert processes.count() == 1 and processes.speaks_first()


def wait_until(condition, job):
    until = time.monotonic() + 180
    while not condition():
        assert job.poll() is None and time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.slow
def test_more_processes_than_images_in_a_batch_are_refused_before_training(tiny_root, tmp_path):
    job = train(tiny_root, tmp_path, 5)
    _, err = job.communicate(timeout=300)
    assert job.returncode != 0
    expected = "error: 5 processes cannot share a batch of 4 images: start torchrun with --nproc-per-node 4 or less"
    assert err.count(expected) == 1 and not (tmp_path / "joint").exists(), err


def test_the_smallest_batch_of_a_run_is_found():
    assert smallest_batch(SETTINGS) == 2
    wide = replace(SETTINGS, batch_size={"seg": 8, "det": 9, "cls": 16}, replay_per_task=6)
    assert smallest_batch(wide) == 6
    assert smallest_batch(replace(wide, replay_per_task=0)) == 8
    assert smallest_batch(replace(wide, derpp_weight=1.0)) == 3
    assert smallest_batch(replace(wide, tasks=["cls"])) == 16


def test_one_process_changes_nothing():
    x = torch.arange(6.0).view(3, 2)
    assert processes.count() == 1 and processes.is_first()
    assert processes.own_rows(x).equal(x) and processes.gather_rows(x, 3) is x
    net = nn.Sequential(nn.BatchNorm2d(2))
    processes.join_batchnorm(net)
    assert type(net[0]) is nn.BatchNorm2d


def test_a_batch_without_enough_images_is_refused(monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 3)
    with pytest.raises(UserError, match="3 processes cannot share a batch of 2 images"):
        processes.own_rows(torch.zeros(2, 4))
