"""Figures of a study: seeds, forgetting over time, retention under each remedy and buffer size."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mtl_utils import files
from mtl_utils.experiments import plans, runner
from mtl_utils.experiments import results as results_module
from mtl_utils.experiments.results import Estimate, Retention, RunSummary
from mtl_utils.forgetting import TOLERANCE
from mtl_utils.plots import pictures, style
from mtl_utils.plots.curves import highest_value, mark_stages
from mtl_utils.plots.style import TASK_COLOURS, TASK_LINES, TASK_MARKS
from mtl_utils.run import Run
from mtl_utils.tasks import METRIC_NAMES, TASKS, Task, stage_number

SHOWN_IMAGE = 39  # of each val set: one of the four whose predictions the notebooks 03 to 05 show
LINE_STYLES = tuple(TASK_LINES.values())  # here they tell runs apart
LEAST_MEGABYTES = 0.1  # below it the axis of megabytes is linear, so that 0 has a place
RETENTION_LABEL = "part of the task alone"


# ---- the default, seed by seed


def seed_dots(results: list[RunSummary]) -> Figure:
    """The default's final metric for each seed with its 95 % interval over images, their mean, and the floor."""
    runs = results_module.runs_named(results, plans.REPLAY.name)
    figure, axes = plt.subplots(1, 3, figsize=(11, 3), layout="constrained")
    for axis, task in zip(axes, TASKS, strict=True):
        scores = results_module.final_scores(results, plans.REPLAY.name, task)
        draw_seeds(axis, task, list(scores.values()), runs[0].floor(task))
        axis.set_xticks(range(len(scores)), [str(seed) for seed in scores])
    return figure


def draw_seeds(axis: Axes, task: Task, scores: list[Estimate], floor: float) -> None:
    """The panel of one task."""
    colour = TASK_COLOURS[task]
    for place, score in enumerate(scores):
        axis.plot([place, place], [score.low, score.high], color=colour, linewidth=2)
        axis.plot(place, score.value, TASK_MARKS[task], color=colour, markeredgecolor="black")
    mean = float(np.mean([score.value for score in scores]))
    axis.axhline(mean, color="0.3", linewidth=1, label=f"mean {mean:.3f}")
    axis.axhline(floor, color="0.3", linewidth=1, linestyle=":", label=f"floor {floor:.3f}")
    axis.set(title=METRIC_NAMES[task], xlabel="seed", xlim=(-0.6, len(scores) - 0.4), ylim=(-0.02, 1))
    axis.legend(frameon=False, fontsize=9)


# ---- forgetting over time


def forgetting_curves(results: list[RunSummary], names: dict[str, str], seed: int = 0) -> Figure:
    """The metric of each task over the epochs of all stages, one line for each of `names` (run: its label)."""
    runs = {}
    for name, label in names.items():
        run = results_module.find_run(results, name, seed)
        if run is not None:
            runs[label] = run
    assert runs, f"none of {', '.join(names)} was run with seed {seed}"
    offsets = results_module.stage_offsets(next(iter(runs.values())))  # all runs have the same epochs
    starts = {f"stage {stage_number(stage)}": offset for stage, offset in offsets.items()}
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
    for axis, task in zip(axes, TASKS, strict=True):
        for (label, run), line_style in zip(runs.items(), LINE_STYLES, strict=False):
            draw_val_curve(axis, run, task, label, line_style)
        top = 1.1 * highest_value(axis) or 1
        mark_stages(axis, starts)
        axis.set(xlabel="epoch", ylabel=METRIC_NAMES[task], xlim=(0, None), ylim=(0, top))
        axis.legend(frameon=False, fontsize=9, loc="lower left")
    return figure


def draw_val_curve(axis: Axes, run: RunSummary, task: Task, label: str, line_style: str) -> None:
    """The metric of a task in one run, from its own stage on."""
    offsets = results_module.stage_offsets(run)
    epochs = []
    values = []
    for stage, curve in run.val_curve.items():
        for epoch, scores in curve:
            if task in scores:
                epochs.append(offsets[stage] + epoch)
                values.append(scores[task])
    axis.plot(
        epochs,
        values,
        label=label,
        color=TASK_COLOURS[task],
        linestyle=line_style,
        marker=TASK_MARKS[task],
        markersize=4,
        alpha=1 if line_style == LINE_STYLES[0] else 0.6,
    )


# ---- retention


def retention_bars(results: list[RunSummary], name: str) -> Figure:
    """Retention of each task in a run, with its 95 % interval over images."""
    figure, axis = plt.subplots(figsize=(6.4, 2.6), layout="constrained")
    for row, task in enumerate(TASKS):
        retention = results_module.mean_retention(results, name, task)
        if retention is not None:
            axis.barh(row, retention.value, color=TASK_COLOURS[task])
            axis.plot([retention.low, retention.high], [row, row], color="black", linewidth=1.5)
            text_left = max(retention.value, retention.high) + 0.02
            axis.text(text_left, row, f"{retention.value:.0%}", va="center")
    draw_vertical_rule(axis)
    axis.set(xlim=(0, 1.4), xlabel=RETENTION_LABEL)
    axis.set_yticks(range(len(TASKS)), [METRIC_NAMES[task] for task in TASKS])
    axis.invert_yaxis()  # the first task on top
    return figure


def retention_dots(results: list[RunSummary]) -> Figure:
    """Retention under every remedy, one panel a task: mean over seeds with its 95 % interval over images."""
    names = results_module.remedies(results)
    height = 1 + 0.35 * len(names)
    figure, axes = plt.subplots(1, 3, figsize=(11, height), layout="constrained", sharex=True, sharey=True)
    for axis, task in zip(axes, TASKS, strict=True):
        for row, name in enumerate(names):
            retention = results_module.mean_retention(results, name, task)
            if retention is not None:
                draw_dot(axis, task, row, retention)
        draw_vertical_rule(axis)
        axis.set(title=METRIC_NAMES[task], xlabel=RETENTION_LABEL)
    first = axes[0]  # the others share its axes
    first.set_xlim(0, None)
    first.set_yticks(range(len(names)), [seeds_label(results, name) for name in names])
    first.invert_yaxis()
    return figure


def draw_dot(axis: Axes, task: Task, row: int, retention: Retention) -> None:
    """Retention as a dot on its interval."""
    colour = TASK_COLOURS[task]
    axis.plot([retention.low, retention.high], [row, row], color=colour, linewidth=2)
    axis.plot(retention.value, row, TASK_MARKS[task], color=colour, markeredgecolor="black")


def seeds_label(results: list[RunSummary], name: str) -> str:
    """The name of a run, and with how many seeds it was made."""
    seeds = len(results_module.runs_named(results, name))
    return f"{name} (1 seed)" if seeds == 1 else f"{name} ({seeds} seeds)"


def draw_vertical_rule(axis: Axes) -> None:
    """Two lines where retention is drawn along x: the task alone (solid), and the 5 % rule's part of it (dotted)."""
    axis.axvline(1, color="0.3", linewidth=1)
    axis.axvline(1 - TOLERANCE, color="0.3", linewidth=1, linestyle=":")


def draw_horizontal_rule(axis: Axes) -> None:
    """The same two lines where retention is drawn along y."""
    axis.axhline(1, color="0.3", linewidth=1)
    axis.axhline(1 - TOLERANCE, color="0.3", linewidth=1, linestyle=":")


# ---- retention and what it costs


def retention_against_bytes(results: list[RunSummary]) -> Figure:
    """The least that any task keeps of its baseline in each run, against the megabytes stored for it.

    Runs that keep more with fewer bytes lie on the upper left.
    """
    figure, axis = plt.subplots(figsize=(7.5, 4), layout="constrained")
    points = costs_and_retention(results)
    for name, point in points.items():
        axis.plot(*point, "o", color="0.2")
        offset = (6, 6) if is_above_neighbour(point, list(points.values())) else (6, -12)  # points, right of the dot
        axis.annotate(name, point, xytext=offset, textcoords="offset points", fontsize=style.SMALLEST_TEXT)
    draw_horizontal_rule(axis)
    axis.set_xscale("symlog", linthresh=LEAST_MEGABYTES)
    axis.set(xlabel="stored for the last stage, MB", ylabel="share of its baseline\nthat the worst task keeps")
    axis.set_ylim(min(kept for _, kept in points.values()) - 0.1, 1.1)
    axis.set_xlim(-0.02, 200)
    return figure


def is_above_neighbour(point: tuple[float, float], points: Sequence[tuple[float, float]]) -> bool:
    """Whether a point is higher than the one that is nearest to it along the logarithmic horizontal axis."""
    others = [other for other in points if other != point]
    if not others:
        return True
    place = np.log(point[0] + LEAST_MEGABYTES)
    nearest = min(others, key=lambda other: abs(np.log(other[0] + LEAST_MEGABYTES) - place))
    return point[1] > nearest[1]


def costs_and_retention(results: list[RunSummary]) -> dict[str, tuple[float, float]]:
    """Megabytes stored and the least part of a task's larger baseline, by run, the smallest cost first.

    Without joint training, which has no earlier stage to store for, and without runs that lack a baseline.
    """
    points = {}
    for name in results_module.run_names(results):
        runs = results_module.runs_named(results, name)
        drops = [results_module.five_percent_drop(results, name, task) for task in TASKS]
        values = [drop.final for drop in drops if drop is not None]
        if len(values) < len(TASKS) or runs[0].settings.joint:
            continue
        megabytes = float(np.mean([run.stored_bytes for run in runs])) / 1e6
        points[name] = (megabytes, min(values))
    return dict(sorted(points.items(), key=lambda item: item[1]))


# ---- retention by buffer size


def buffer_size_curves(results: list[RunSummary]) -> Figure:
    """Retention against the number of stored images a task, one panel a task and one line a way to choose them.

    Of the seeds that all of these runs share.
    """
    selections = results_module.buffer_sizes(results)
    names: list[str] = []
    for runs in selections.values():
        names += runs.values()
    shared = results_module.same_seeds(results, names)
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained", sharey=True)
    for axis, task in zip(axes, TASKS, strict=True):
        for (selection, runs), line_style in zip(selections.items(), LINE_STYLES, strict=False):
            draw_buffer_sizes(axis, shared, task, selection, runs, line_style)
        draw_horizontal_rule(axis)
        axis.set(title=METRIC_NAMES[task], xlabel="stored images a task")
        show_buffer_sizes(axis)
    axes[0].set(ylabel=RETENTION_LABEL, ylim=(0, None))
    axes[0].legend(frameon=False, fontsize=9)
    return figure


def draw_buffer_sizes(
    axis: Axes, results: list[RunSummary], task: Task, selection: str, runs: dict[int, str], line_style: str
) -> None:
    """The line of one selection, its 95 % interval in grey; runs: {stored images: name}."""
    sizes = []
    kept = []
    for size, name in runs.items():
        retention = results_module.mean_retention(results, name, task)
        if retention is not None:
            sizes.append(size)
            kept.append(retention)
    values = [retention.value for retention in kept]
    low = [retention.low for retention in kept]
    high = [retention.high for retention in kept]
    axis.plot(
        sizes,
        values,
        color=TASK_COLOURS[task],
        marker=TASK_MARKS[task],
        linestyle=line_style,
        label=selection,
    )
    axis.fill_between(sizes, low, high, color="0.5", alpha=0.12)


def show_buffer_sizes(axis: Axes) -> None:
    """An axis of stored images: linear up to the smallest buffer, then logarithmic, with the sizes of the study."""
    ticks = sorted([*plans.BUFFER_ENDS, *plans.BUFFER_SIZES])
    axis.set_xscale("symlog", linthresh=min(plans.BUFFER_SIZES))
    axis.set_xlim(-2, 300)
    axis.set_xticks(ticks, labels=[str(size) for size in ticks])


# ---- pictures that are stored beside the results


def draw_forgetting(base: Run, path: Path) -> None:
    """Draw what the models of a study with and without replay predict for the same images after each stage.

    Nothing is drawn until both have been run. base: the study's default run.
    """
    runs = {
        "with replay": runner.planned_run(plans.REPLAY, base),
        "without": runner.planned_run(plans.NO_REPLAY, base),
    }
    if not all(run.path(TASKS[-1]).exists() for run in runs.values()):
        return
    models = {}
    for label, run in runs.items():
        models[label] = {stage: run.model(stage) for stage in TASKS}
    datasets = {task: base.data(task, "val") for task in TASKS[:-1]}
    style.use_style()
    figure = pictures.run_grid(models, datasets, base.settings.eval_size, SHOWN_IMAGE)
    style.save_png(figure, path)


def draw_study(profile: str) -> None:
    """Draw retention under every remedy and every buffer size, beside the results of a profile's study."""
    folder = files.STUDY_RESULTS / profile
    results = results_module.read_results(folder)
    style.use_style()
    style.save_png(retention_dots(results), folder / "remedies.png")
    style.save_png(buffer_size_curves(results), folder / "buffer_sizes.png")
    style.save_png(retention_against_bytes(results), folder / "costs.png")
