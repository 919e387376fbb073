"""One look for every figure, and the curves, matrices and bars that are made from results.

Colours are those of Okabe and Ito, told apart by colour-blind readers; line styles and hatches tell the tasks apart in
grey as well. Figures are shown inline and saved under their name by `show`.
"""

import io
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from mtl_utils import evidence
from mtl_utils.report import r_matrix
from mtl_utils.settings import METRIC_NAMES, TASK_NAMES, TASKS

TASK_COLOURS = {"seg": "#0072B2", "det": "#D55E00", "cls": "#009E73"}
TASK_LINES = {"seg": "-", "det": "--", "cls": "-."}
TASK_MARKS = {"seg": "o", "det": "s", "cls": "^"}
HEAVY = 100_000  # bytes from which a picture is stored with 256 colours: photographs as PNG are large
STYLE = {"figure.dpi": 80, "savefig.dpi": 80, "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}


def use_style() -> None:
    """Set the project's look for all figures that follow."""
    sns.set_theme(style="ticks", rc=STYLE)


def gallery(folder: Path, source: object) -> Callable[[Figure, str], None]:
    """A function show(figure, name): say which data a figure rests on, save it as folder/name.png and display it."""
    from IPython.display import Image as Shown
    from IPython.display import display

    use_style()

    def show(figure: Figure, name: str) -> None:
        figure.supxlabel(str(source), x=1, ha="right", fontsize=7, color="0.4")
        folder.mkdir(parents=True, exist_ok=True)
        save_light(figure, folder / f"{name}.png")
        display(Shown(folder / f"{name}.png"))

    return show


def save_light(figure: Figure, path: Path) -> None:
    """Save a figure as PNG, with 256 colours where it would be heavy, and close it."""
    file = io.BytesIO()
    figure.savefig(file, format="png", bbox_inches="tight")
    plt.close(figure)
    if file.tell() < HEAVY:
        path.write_bytes(file.getvalue())
    else:
        Image.open(file).convert("RGB").quantize(256, kmeans=2).save(path, optimize=True)


def spans(histories: dict[str, list[dict]]) -> dict[str, int]:
    """The number of epochs before each stage, for one time axis through all of them."""
    lengths = [len(histories.get(task, [])) for task in TASKS]
    return {task: sum(lengths[:i]) for i, task in enumerate(TASKS) if task in histories}


def learning_curves(histories: dict[str, list[dict]]) -> Figure:
    """Training loss and val metric of every task over the epochs of one or more stages."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
    draw_curves(axes, histories)
    return figure


def draw_curves(axes: np.ndarray, histories: dict[str, list[dict]]) -> None:
    """Fill two axes: losses at the left, metrics at the right; stages are divided by a grey line."""
    offset = spans(histories)
    for task in TASKS:
        look = {"color": TASK_COLOURS[task], "linestyle": TASK_LINES[task]}
        for label, (x, y), axis, mark in (
            (TASK_NAMES[task], points(histories, offset, "loss", task), axes[0], ""),
            (METRIC_NAMES[task], points(histories, offset, "val", task), axes[1], TASK_MARKS[task]),
        ):
            if x:
                axis.plot(x, y, label=label, marker=mark, markersize=4, **look)
    for axis, title in zip(axes, ("training loss", "metric on val"), strict=True):
        mark_stages(axis, {TASK_NAMES[stage]: start for stage, start in offset.items()})
        axis.set(xlabel="epoch", ylabel=title, xlim=(0, None), ylim=(0, None))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        if curves := axis.get_legend_handles_labels()[0]:
            axis.set_ylim(0, 1.2 * max(max(curve.get_ydata()) for curve in curves) or 1)  # room for the legend
            axis.legend(frameon=False, fontsize=9, loc="upper center", ncols=len(TASKS))


def mark_stages(axis: Axes, starts: dict[str, int]) -> None:
    """A grey line at the epoch where each stage begins, its name above."""
    for name, start in starts.items():
        axis.axvline(start, color="0.8", linewidth=1, zorder=0)
        axis.text(start, 1.01, f" {name}", transform=axis.get_xaxis_transform(), fontsize=8, color="0.4")


def points(histories: dict, offset: dict[str, int], key: str, task: str) -> tuple[list, list]:
    """x (epoch through all stages) and y of the values of a task that the histories hold under `key`."""
    pairs = [
        (offset[stage] + entry["epoch"], entry[key][task])
        for stage, history in histories.items()
        for entry in history
        if task in entry.get(key, {})
    ]
    return [x for x, _ in pairs], [y for _, y in pairs]


class LiveCurve:
    """Called after each epoch: redraws the curves of the running stage in place."""

    def __init__(self):
        self.figure, self.handle = None, None

    def __call__(self, trainer) -> None:
        """Draw the trainer's history."""
        from IPython.display import display

        if self.figure is None:
            self.figure, self.axes = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
            plt.close(self.figure)
        for axis in self.axes:
            axis.clear()
        draw_curves(self.axes, {trainer.task: trainer.history})
        if self.handle is None:
            self.handle = display(self.figure, display_id=True)
        else:
            self.handle.update(self.figure)


def matrix_heatmap(metrics: dict) -> Figure:
    """The R matrix as a heat map: each column shaded against its own largest value."""
    matrix = r_matrix(metrics)
    shade = matrix / np.nanmax(matrix, axis=0, keepdims=True)
    figure, axis = plt.subplots(figsize=(5.2, 3.2), layout="constrained")
    rows = [f"after stage {i + 1}\n({TASK_NAMES[task]})" for i, task in enumerate(TASKS)]
    columns = [METRIC_NAMES[task] for task in TASKS]
    look = {"cmap": "Blues", "vmin": 0, "vmax": 1.3, "cbar": False, "linewidths": 2, "mask": np.isnan(matrix)}
    sns.heatmap(shade, annot=matrix, fmt=".3f", xticklabels=columns, yticklabels=rows, ax=axis, **look)
    axis.tick_params(length=0, axis="both")
    plt.setp(axis.get_yticklabels(), rotation=0)
    return figure


def seed_dots(results: list[dict]) -> Figure:
    """The default's final metric for each seed with its 95 % interval over images, their mean, and the floor."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 3), layout="constrained")
    for axis, task in zip(axes, TASKS, strict=True):
        found = evidence.finals(results, "replay", task)
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
    there = {name: label for name, label in names.items() if evidence.find(results, name, seed)}
    for (name, label), line in zip(there.items(), TASK_LINES.values(), strict=False):
        val, starts = evidence.find(results, name, seed)["val"], evidence.starts(results, name, seed)
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
        if kept := evidence.pooled(results, name, task):
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
    names = evidence.remedies(results)
    size = (11, 1 + 0.35 * len(names))
    figure, axes = plt.subplots(1, 3, figsize=size, layout="constrained", sharex=True, sharey=True)
    for axis, task in zip(axes, TASKS, strict=True):
        for i, name in enumerate(names):
            if kept := evidence.pooled(results, name, task):
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
    line(evidence.RULE, color="0.3", linewidth=1, linestyle=":")


def memory_curves(results: list[dict]) -> Figure:
    """Retention against the number of stored images a task, one panel a task and one line a way to choose them.

    Of the seeds that all of these runs share.
    """
    memories = evidence.memory_sizes(results)
    results = evidence.same_seeds(results, (name for runs in memories.values() for name in runs.values()))
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained", sharey=True)
    for axis, task in zip(axes, TASKS, strict=True):
        for (selection, runs), line in zip(memories.items(), TASK_LINES.values(), strict=False):
            kept = [(size, *k) for size, name in runs.items() if (k := evidence.pooled(results, name, task))]
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


def confusion_matrices(metrics: dict[str, dict], names: dict[str, list[str]]) -> Figure:
    """Confusion of segmentation (pixels) and classification (images), each row divided by its sum."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 5.6), layout="constrained")
    for axis, task in zip(axes, ("seg", "cls"), strict=True):
        matrix = np.array(metrics[task]["confusion"], dtype=float)
        share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
        look = {"cmap": "Blues", "vmin": 0, "vmax": 1, "square": True, "cbar": task == "cls"}
        sns.heatmap(share, xticklabels=names[task], yticklabels=names[task], ax=axis, **look)
        axis.set(xlabel="predicted", ylabel="true", title=f"{TASK_NAMES[task]} (share of the true class)")
        axis.tick_params(labelsize=8, length=0)
    return figure


def precision_recall(precision: np.ndarray, names: list[str]) -> Figure:
    """COCO's precision (overlaps, 101, C) against recall at an overlap of .5: a panel a class, its area the AP@50."""
    figure, axes = plt.subplots(
        2, (len(names) + 1) // 2, figsize=(11, 4.2), layout="constrained", sharex=True, sharey=True
    )
    for axis, name, values in zip(axes.flat, names, precision[0].T, strict=False):
        known = values.min() > -1  # COCO's -1: no object of this class
        axis.fill_between(np.linspace(0, 1, len(values)), values if known else 0, color=TASK_COLOURS["det"], alpha=0.5)
        area = f"{values.mean():.2f}" if known else "no object"
        axis.set_title(f"{name} ({area})", fontsize=9)
        axis.set(xlim=(0, 1), ylim=(0, 1.02))
    for axis in axes[:, 0]:
        axis.set_ylabel("precision")
    for axis in axes[-1]:
        axis.set_xlabel("recall")
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    return figure


def class_bars(metrics: dict[str, dict]) -> Figure:
    """IoU, AP@50 and recall of every class; dotted: their mean, grey: the floor, a cross: class absent in this set."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 4.6), layout="constrained")
    for axis, task, label in zip(axes, TASKS, ("IoU", "AP@50", "recall"), strict=True):
        names, values = zip(*metrics[task]["per_class"].items(), strict=True)
        axis.barh(names, [v or 0 for v in values], color=TASK_COLOURS[task])
        for i, value in enumerate(values):
            text = "×" if value is None else f"{value:.2f}"
            axis.text((value or 0) + 0.01, i, text, va="center", fontsize=7)
        axis.axvline(metrics[task][METRIC_NAMES[task]], color="0.3", linestyle=":")
        axis.axvline(metrics[task]["floor"], color="0.6", linewidth=1)
        axis.set(xlim=(0, 1.08), xlabel=label, title=TASK_NAMES[task])
        axis.invert_yaxis()
        axis.tick_params(axis="y", labelsize=8, length=0)
    return figure
