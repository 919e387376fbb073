"""The commands that train: run, restart, train, bench."""

import argparse
import os
from itertools import count
from pathlib import Path

from mtl_utils import files, forgetting
from mtl_utils.experiments import benchmark
from mtl_utils.files import UserError
from mtl_utils.prepare.root import find_root
from mtl_utils.run import Run
from mtl_utils.settings import get_settings
from mtl_utils.stages import run_stage
from mtl_utils.tasks import METRIC_NAMES, TASK_NAMES, TASKS


def open_run(options: argparse.Namespace, **changes) -> Run:
    """The run that the options describe."""
    folder = files.PROJECT / "runs" / options.name if options.name else None
    return Run(get_settings(options.profile, **changes), folder, find_root(options.data_root))


def run_command(options: argparse.Namespace) -> None:
    """Execute the notebooks into the run's folder."""
    from mtl_utils.publish import notebooks  # here, since marking needs no Jupyter

    run = open_run(options)
    print(run)
    environment = {"MTL_PROFILE": run.settings.profile, "MTL_RUN": str(run.folder)}
    if run.root.chosen_by != "synthetic":
        environment["MTL_DATA_ROOT"] = str(run.root.path)
    os.environ.update(environment)
    notebooks.execute_all(run.folder)
    print(forgetting.closing_report(forgetting.read_metrics(run.folder / "metrics.json")))


def restart_command(options: argparse.Namespace) -> None:
    """Execute the notebooks from the start, all stages included."""
    set_aside(open_run(options).folder)
    run_command(options)


def set_aside(folder: Path) -> None:
    """Rename a run's folder, where there is one, to the first free of NAME-1, NAME-2 and so on."""
    if folder.exists():
        numbered = (folder.with_name(f"{folder.name}-{i}") for i in count(1))
        aside = next(path for path in numbered if not path.exists())
        folder.rename(aside)
        print(f"what was there is in {aside.name}/ now")


def train_command(options: argparse.Namespace) -> None:
    """Train the three stages without notebooks."""
    changes = {"replay_per_task": 0} if options.no_replay else {}
    run = open_run(options, seed=options.seed, **changes)
    if any(run.folder.glob("stage*")) and not options.resume:
        raise UserError(f"{run.folder} already holds a run: continue it with --resume, or name another with --name.")
    print(run)
    for task in TASKS:
        result = run_stage(run, task, lambda t: print(epoch_line(t.history[-1], t.settings.epochs[t.task])))
        print(f"stage {TASK_NAMES[task]} done after {result['minutes']:.1f} minutes: {scores_line(result['metrics'])}")
    print(forgetting.closing_report(forgetting.read_metrics(run.folder / "metrics.json")))


def epoch_line(entry: dict, epochs: int) -> str:
    """One line of progress."""
    losses = " ".join(f"{task} {value:.3f}" for task, value in entry["loss"].items())
    val = " ".join(f"{METRIC_NAMES[task]} {value:.3f}" for task, value in entry.get("val", {}).items())
    return f"epoch {entry['epoch']:3d}/{epochs}  {entry['seconds']:5.1f} s  loss {losses}  {val}".rstrip()


def scores_line(metrics: dict[str, dict]) -> str:
    """The metric of each task beside its floor."""
    scores = ((METRIC_NAMES[task], values[METRIC_NAMES[task]], values["floor"]) for task, values in metrics.items())
    return ", ".join(f"{name} {value:.4f} (floor {floor:.4f})" for name, value, floor in scores)


def bench_command(options: argparse.Namespace) -> None:
    """Measure every stage's loop against the bare network."""
    run = open_run(options)
    print(run)
    for task in TASKS:
        found = benchmark.throughput(run, task)
        speeds = f"{found['network']:.1f} images/s alone, {found['loop']:.1f} in the loop"
        print(f"{TASK_NAMES[task]:15} {speeds}: {found['ratio']:.0%}")
