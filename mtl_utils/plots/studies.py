"""Figures of a study: seeds, forgetting over time, retention under each remedy and buffer size."""

from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from mtl_utils import files
from mtl_utils.experiments import plans, runner
from mtl_utils.experiments import results as results_module
from mtl_utils.plots import pictures, style
from mtl_utils.plots.curves import mark_stages
from mtl_utils.plots.style import TASK_COLOURS, TASK_LINES, TASK_MARKS
from mtl_utils.run import Run
from mtl_utils.tasks import METRIC_NAMES, TASKS


def seed_dots(results: list[dict]) -> Figure:
    """The default's final metric for each seed with its 95 % interval over images, their mean, and the floor."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 3), layout="constrained")
    for axis, task in zip(axes, TASKS, strict=True):
        found = results_module.final_scores(results, "replay", task)
        for i, (value, low, high) in enumerate(found.values()):
            axis.plot([i, i], [low, high], color=TASK_COLOURS[task], linewidth=2)
            axis.plot(i, value, TASK_MARKS[task], color=TASK_COLOURS[task], markeredgecolor="black")
        mean = np.mean([value for value, _, _ in found.values()])
        axis.axhline(mean, color="0.3", linewidth=1, label=f"mean {mean:.3f}")
        floor = next(r["metrics"]["cls"][task]["floor"] for r in results if r["name"] == "replay")
        axis.axhline(floor, color="0.3", linewidth=1, linestyle=":", label=f"floor {floor:.3f}")
        axis.set(title=METRIC_NAMES[task], xlabel="seed", xlim=(-0.6, len(found) - 0.4), ylim=(-0.02, 1))
        axis.set_xticks(range(len(found)), [str(seed) for seed in found])
        axis.legend(frameon=False, fontsize=9)
    return figure


def forgetting_curves(results: list[dict], names: dict[str, str], seed: int = 0) -> Figure:
    """The metric of each task over the epochs of all stages, one line for each of `names` (run: what to call it)."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
    there = {name: label for name, label in names.items() if results_module.find(results, name, seed)}
    for (name, label), line in zip(there.items(), TASK_LINES.values(), strict=False):
        val, starts = (
            results_module.find(results, name, seed)["val_curve"],
            results_module.stage_offsets(results, name, seed),
        )
        for axis, task in zip(axes, TASKS, strict=True):
            found = [(starts[stage] + e, v[task]) for stage, looks in val.items() for e, v in looks if task in v]
            look = {"linestyle": line, "marker": TASK_MARKS[task], "markersize": 4, "color": TASK_COLOURS[task]}
            axis.plot(*zip(*found, strict=True), label=label, **look, alpha=1 if line == "-" else 0.6)
    for axis, task in zip(axes, TASKS, strict=True):
        mark_stages(axis, {f"stage {TASKS.index(stage) + 1}": start for stage, start in starts.items()})
        highest = max(max(line.get_ydata()) for line in axis.lines if line.get_label()[0] != "_")
        axis.set(xlabel="epoch", ylabel=METRIC_NAMES[task], xlim=(0, None), ylim=(0, 1.1 * highest or 1))
        axis.legend(frameon=False, fontsize=9, loc="lower left")
    return figure


def retention_bars(results: list[dict], name: str) -> Figure:
    """What a run has kept of each task, as a part of the task alone, with the 95 % interval over images."""
    figure, axis = plt.subplots(figsize=(6.4, 2.6), layout="constrained")
    for i, task in enumerate(TASKS):
        if kept := results_module.mean_retention(results, name, task):
            value, low, high, _ = kept
            axis.barh(i, value, color=TASK_COLOURS[task])
            axis.plot([low, high], [i, i], color="black", linewidth=1.5)
            axis.text(max(value, high) + 0.02, i, f"{value:.0%}", va="center")
    draw_rule(axis.axvline)
    axis.set(xlim=(0, 1.4), xlabel="part of the task alone")
    axis.set_yticks(range(len(TASKS)), [METRIC_NAMES[task] for task in TASKS])
    axis.invert_yaxis()
    return figure


def retention_dots(results: list[dict]) -> Figure:
    """Retention under every remedy, one panel a task: mean over seeds with its 95 % interval over images."""
    names = results_module.remedies(results)
    size = (11, 1 + 0.35 * len(names))
    figure, axes = plt.subplots(1, 3, figsize=size, layout="constrained", sharex=True, sharey=True)
    for axis, task in zip(axes, TASKS, strict=True):
        for i, name in enumerate(names):
            if kept := results_module.mean_retention(results, name, task):
                value, low, high, _ = kept
                axis.plot([low, high], [i, i], color=TASK_COLOURS[task], linewidth=2)
                axis.plot(value, i, TASK_MARKS[task], color=TASK_COLOURS[task], markeredgecolor="black")
        draw_rule(axis.axvline)
        axis.set(title=METRIC_NAMES[task], xlabel="part of the task alone")
    axes[0].set_xlim(0, None)
    axes[0].set_yticks(range(len(names)), [seeds_label(results, name) for name in names])
    axes[0].invert_yaxis()
    return figure


def seeds_label(results: list[dict], name: str) -> str:
    """The name of a kind of run, and with how many seeds it was run."""
    seeds = sum(result["name"] == name for result in results)
    return f"{name} ({seeds} seed{'s' * (seeds > 1)})"


def draw_rule(line: Callable) -> None:
    """The task alone (solid) and the assignment's 95 % of it (dotted), by axvline or axhline."""
    line(1.0, color="0.3", linewidth=1)
    line(results_module.RETENTION_RULE, color="0.3", linewidth=1, linestyle=":")


def memory_curves(results: list[dict]) -> Figure:
    """Retention against the number of stored images a task, one panel a task and one line a way to choose them.

    Of the seeds that all of these runs share.
    """
    memories = results_module.memory_sizes(results)
    results = results_module.same_seeds(results, (name for runs in memories.values() for name in runs.values()))
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained", sharey=True)
    for axis, task in zip(axes, TASKS, strict=True):
        for (selection, runs), line in zip(memories.items(), TASK_LINES.values(), strict=False):
            kept = [
                (size, *k) for size, name in runs.items() if (k := results_module.mean_retention(results, name, task))
            ]
            sizes, values, low, high, _ = zip(*kept, strict=True) if kept else [()] * 5
            look = {"color": TASK_COLOURS[task], "marker": TASK_MARKS[task], "linestyle": line, "label": selection}
            axis.plot(sizes, values, **look)
            axis.fill_between(sizes, low, high, color="0.5", alpha=0.12)
        draw_rule(axis.axhline)
        axis.set(title=METRIC_NAMES[task], xlabel="stored images a task")
        axis.set_xscale("symlog", linthresh=10)
        axis.set_xlim(-2, 300)
        axis.set_xticks((0, 10, 20, 60, 240), labels=("0", "10", "20", "60", "240"))
    axes[0].set(ylabel="part of the task alone", ylim=(0, None))
    axes[0].legend(frameon=False, fontsize=9)
    return figure


SHOWN_IMAGE = 39  # of each val set: one of the four whose predictions the notebooks 03 to 05 show


def draw_forgetting(base: Run, path: Path) -> None:
    """Draw what the models of a study with and without replay say about the same images after each stage.

    Nothing is drawn until both have been run. base: the study's default run.
    """
    runs = {"with replay": runner.plan_run(plans.REPLAY, base), "without": runner.plan_run(plans.NO_REPLAY, base)}
    if all(run.path(TASKS[-1]).exists() for run in runs.values()):
        style.use_style()
        models = {label: {stage: run.model(stage) for stage in TASKS} for label, run in runs.items()}
        sets = {task: base.data(task, "val") for task in TASKS[:-1]}
        style.save_png(pictures.run_grid(models, sets, base.settings.eval_size, SHOWN_IMAGE), path)


def draw_study(profile: str) -> None:
    """Draw what every remedy and every size of the memory keeps, beside the results of a profile's study."""
    style.use_style()
    results, folder = results_module.read_results(files.STUDY_RESULTS / profile), files.STUDY_RESULTS / profile
    style.save_png(retention_dots(results), folder / "remedies.png")
    style.save_png(memory_curves(results), folder / "memory.png")
