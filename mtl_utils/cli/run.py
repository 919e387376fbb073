"""The commands that train: run, restart, train, bench."""

import argparse
import contextlib
import os
import re
from pathlib import Path
from typing import Any

from mtl_utils import environment, files, forgetting, processes
from mtl_utils.cli.evaluate import chosen_tasks
from mtl_utils.evaluation import TaskMetrics
from mtl_utils.files import UserError
from mtl_utils.prepare.root import find_root
from mtl_utils.run import Run, pick_device, read_metrics
from mtl_utils.settings import get_settings
from mtl_utils.stages import run_stage
from mtl_utils.tasks import METRIC_NAMES, TASK_NAMES, TASKS, Task
from mtl_utils.training import EpochRecord, Trainer, smallest_batch

RUN_NAME = re.compile(r"\w[\w. +-]*")  # one folder's name, not hidden


def open_run(options: argparse.Namespace, **overrides: Any) -> Run:
    """The run that the options describe, with single settings replaced."""
    chosen_device(options)  # first, since the default profile depends on it
    settings = get_settings(options.profile, **overrides)
    if options.skip_broken:
        os.environ[environment.SKIP_BROKEN] = "1"  # the notebooks' kernels have to know it, too
    folder = named_folder(options.name) if options.name else None
    return Run(settings, folder, find_root(options.data_root))


def chosen_device(options: argparse.Namespace) -> str:
    """The device of a command; what the option names is kept for the notebooks, whose kernels have to know it, too."""
    if options.device:
        os.environ[environment.DEVICE] = options.device
    return pick_device()


def named_folder(name: str) -> Path:
    """The folder of a run of that name. Raises UserError for anything but a plain name."""
    if not RUN_NAME.fullmatch(name):
        raise UserError(f"--name {name!r} is no name of a folder: choose letters, digits, spaces and any of _ . + -")
    return environment.runs_folder() / name


def run_command(options: argparse.Namespace) -> None:
    """Execute the notebooks into the run's folder."""
    from mtl_utils.publish import notebooks  # here, since training needs no Jupyter

    processes.stand_alone()
    run = open_run(options)
    print(run)
    os.environ.update(kernel_environment(run))
    notebooks.execute_all(run.folder)
    print_report(run)


def kernel_environment(run: Run) -> dict[str, str]:
    """The variables by which the notebooks, each in a process of its own, find the run."""
    variables = {environment.PROFILE: run.settings.profile, environment.RUN: str(run.folder)}
    if not run.root.is_synthetic:
        variables[environment.DATA_ROOT] = str(run.root.path)
    return variables


def print_report(run: Run) -> None:
    """Print the closing report of a run of which all stages are finished."""
    metrics = read_metrics(run.folder / "metrics.json")
    print(forgetting.closing_report(metrics.stage_metrics))


def restart_command(options: argparse.Namespace) -> None:
    """Execute the notebooks from the start, all stages included."""
    processes.stand_alone()
    set_aside(open_run(options).folder)
    run_command(options)


def set_aside(folder: Path) -> None:
    """Rename a run's folder, where there is one, to the first free of NAME-1, NAME-2 and so on.

    Raises UserError for a folder outside of the folder of runs.
    """
    if not folder.exists():
        return
    runs = environment.runs_folder().resolve()
    if folder.resolve().parent != runs:
        raise UserError(f"{folder} is not in {runs}, so restart leaves it alone: move it yourself, or unset MTL_RUN.")
    aside = files.move_aside(folder, "-{}")
    print(f"The previous run was moved to {aside.name}/")


def train_command(options: argparse.Namespace) -> None:
    """Train the stages without notebooks, in several processes where torchrun has started them."""
    processes.expect_others()
    processes.join(chosen_device(options))
    if processes.is_first():
        train_stages(options)
    else:
        # one process reports what all do
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            train_stages(options)
    processes.leave()


def train_stages(options: argparse.Namespace) -> None:
    """Train the stages that the options describe, and print what comes out."""
    tasks = chosen_tasks(options.tasks)
    overrides: dict[str, Any] = {"seed": options.seed, "tasks": list(tasks)}
    if options.no_replay:
        overrides["replay_per_task"] = 0
    run = open_run(options, **overrides)
    if any(run.folder.glob("stage*")) and not options.resume:
        raise UserError(f"{run.folder} already holds a run: continue it with --resume, or name another with --name.")
    images = smallest_batch(run.settings)
    if processes.count() > images:
        raise UserError(processes.too_many(processes.count(), images))
    processes.wait_for_all()  # until each has seen what the folder held
    print(run)
    for task in tasks:
        result = run_stage(run, task, print_epoch)
        print(f"stage {TASK_NAMES[task]} done after {result.minutes:.1f} minutes: {scores_line(result.metrics)}")
    if tasks == TASKS and processes.is_first():  # the report compares all three; the first process writes metrics.json
        print_report(run)


def print_epoch(trainer: Trainer) -> None:
    """Print one line of progress after an epoch."""
    epochs = trainer.settings.epochs[trainer.task]
    print(epoch_line(trainer.history[-1], epochs))


def epoch_line(record: EpochRecord, epochs: int) -> str:
    """One line of progress: every loss, and the metrics on val where they were evaluated."""
    losses = [f"{name} {value:.3f}" for name, value in record.loss.items()]
    scores = [f"{METRIC_NAMES[task]} {value:.3f}" for task, value in (record.val or {}).items()]
    beginning = f"epoch {record.epoch:3d}/{epochs}  {record.seconds:5.1f} s"
    line = f"{beginning}  loss {' '.join(losses)}  {' '.join(scores)}"
    return line.rstrip()  # most epochs are not evaluated


def scores_line(metrics: dict[Task, TaskMetrics]) -> str:
    """The metric of each task beside its floor."""
    scores = [f"{m.name} {m.value:.4f} (floor {m.floor:.4f})" for m in metrics.values()]
    return ", ".join(scores)


def bench_command(options: argparse.Namespace) -> None:
    """Measure one prediction beside EfficientNet-B0, and every stage's loop against the bare network."""
    from mtl_utils.experiments import benchmark

    processes.stand_alone()
    run = open_run(options)
    model = benchmark.trained_model(run)
    times = benchmark.beside_efficientnet_b0(model)
    print("one 512 x 512 image on one thread of the CPU, median milliseconds, measured in turns:")
    print_times("our prediction, all answers read", times.ours, times.ours_bfloat16)
    print_times("EfficientNet-B0's features alone", times.reference, times.reference_bfloat16)
    print(f"ours by EfficientNet-B0 in float32: {times.ratio:.2f}, in bfloat16 {times.ratio_bfloat16:.2f}")
    profile = run.settings.profile
    print(f"profile {profile}, {run.root}, on {run.device}")  # without a folder: nothing is written
    for task in TASKS:
        name = TASK_NAMES[task]
        speed = benchmark.throughput(run, task)
        speeds = f"network only {speed.network:.1f} images/s, with loading {speed.loop:.1f}"
        print(f"{name:15} {speeds}: {speed.ratio:.0%}")


def print_times(label: str, in_float32: float, in_bfloat16: float) -> None:
    """One line of milliseconds."""
    print(f"{label}: {in_float32:.0f} in float32, {in_bfloat16:.0f} in bfloat16")
