"""Sentences about what results show, in Markdown, for the notebooks.

They are made from the numbers of the run that is shown: typed by hand, a sentence that names a class or a number would
be true of one run alone.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from mtl_utils.data import MiniSet, classes_of
from mtl_utils.evaluation import StageMetrics, TaskMetrics
from mtl_utils.experiments.breakdown import RECALLS, Breakdown, SizeScores
from mtl_utils.experiments.plans import NO_REPLAY, REPLAY
from mtl_utils.experiments.results import RunSummary, find_run, passes
from mtl_utils.experiments.sizes import SizeRow
from mtl_utils.files import UserError
from mtl_utils.forgetting import Drop
from mtl_utils.tasks import METRIC_NAMES, TASK_NAMES, TASKS, VOC_CLASSES, Task, stage_number

CLASS_METRICS: dict[Task, str] = {"seg": "IoU", "det": "AP@50", "cls": "recall"}  # of a single class
BACKGROUND = VOC_CLASSES[0]
NAMED = 3  # how many classes or confusions a sentence names
HALF = 0.5  # a recall
FEW = 3  # images
KNOWN = 0.1  # an IoU: a class with less has not been learned
LOST = 0.1  # of a class's IoU: with less of it the class is lost


# ---- one run


def what_is_kept(drops: Sequence[Drop]) -> str:
    """A line a task: its final metric, how much of its baseline that is, and the 5 % rule."""
    lines = []
    for drop in drops:
        name = METRIC_NAMES[drop.task]
        if not drop.learned:
            lines.append(f"- **{name}** ends at {drop.final:.3f}; its baseline is not above the floor.")
            continue
        share = 100 * drop.final / drop.baseline
        verdict = "kept" if drop.passed else "not kept"
        end = f"{share:.1f} % of its baseline {drop.baseline:.3f}"
        lines.append(f"- **{name}** ends at {drop.final:.3f}, {end}: {verdict} by the 5 % rule.")
    return "\n".join(lines)


def largest_class_falls(metrics: StageMetrics, val: Mapping[Task, MiniSet]) -> str:
    """A line for each task but the last: the class that falls most from the end of its own stage to the last one.

    Of the classes that at least FEW images of val show: few images decide about the others. Where another class falls
    further, it is named with its part in the fall of the mean.
    """
    lines = []
    for task in TASKS[:-1]:
        own = metrics[task][task].per_class
        final = metrics[TASKS[-1]][task].per_class
        shown = images_by_class(val[task])
        changes = {}
        for name, before in own.items():
            after = final[name]
            if before is not None and after is not None:
                changes[name] = after - before
        known = [name for name in changes if shown[name] >= FEW]
        if not known:
            continue
        most = min(known, key=lambda name: changes[name])
        end = "none falls"
        if changes[most] < 0:
            values = f"from {own[most]:.2f} to {final[most]:.2f}"
            end = f"*{most}* falls most, {values} ({image_count(shown[most])})"
        line = f"- Of the **{TASK_NAMES[task]}** classes that at least {FEW} images of val show, {end}."
        rare = min(changes, key=lambda name: changes[name])
        if changes[rare] < min(changes[most], 0):
            values = f"from {own[rare]:.2f} to {final[rare]:.2f}"
            part = f"it alone lowers the mean by {-changes[rare] / len(changes):.3f}"
            line += f" *{rare}* falls further, {values} ({image_count(shown[rare])}): {part}."
        lines.append(line)
    return "\n".join(lines)


def image_count(count: int) -> str:
    """A number of images in words."""
    return "1 image" if count == 1 else f"{count} images"


def images_by_class(dataset: MiniSet) -> Counter[str]:
    """How many images of a set show each class; background left out."""
    names = dataset.classes.names(dataset.task)
    counts: Counter[str] = Counter()
    for target in dataset.targets():
        counts.update(names[number] for number in set(classes_of(dataset.task, target)))
    return counts


def seeds_that_pass(results: list[RunSummary]) -> str:
    """A line: how many runs of the default pass the 5 % rule, each compared with the tasks alone of its own seed.

    Seeds that lack a task alone have no verdict and are not counted.
    """
    seeds = sorted(run.seed for run in results if run.name == REPLAY.name)
    verdicts = []
    for seed in seeds:
        of_seed = [run for run in results if run.seed == seed]
        verdict = passes(of_seed, REPLAY.name)
        if verdict is not None:
            verdicts.append(verdict)
    passed = verdicts.count(True)
    return f"- Of the study's {len(verdicts)} seeds of `{REPLAY.name}`, {passed} pass the rule in all three tasks."


# ---- with and without replay


def cost_without_replay(results: list[RunSummary], seed: int = 0) -> str:
    """A line a task: its largest fall in the run without replay, and where it ends without and with replay.

    Raises UserError where one of the two runs has not been made with the seed.
    """
    without = find_run(results, NO_REPLAY.name, seed)
    with_replay = find_run(results, REPLAY.name, seed)
    if without is None or with_replay is None:
        raise UserError(f"{REPLAY.name} or {NO_REPLAY.name} is missing: run `python -m mtl_utils study`.")
    lines = []
    for task in TASKS:
        fall = largest_fall(without, task)
        low = without.final(task)
        kept = with_replay.final(task)
        end = f"It ends at {low:.3f}; with replay it ends at {kept:.3f}."
        lines.append(f"- Without replay **{METRIC_NAMES[task]}** {fall}. {end}")
    return "\n".join(lines)


def largest_fall(run: RunSummary, task: Task) -> str:
    """From which value to which a metric falls most from one stage to the next, from its own stage on."""
    own = TASKS.index(task)
    values = run.matrix[own:, own]  # after its own stage and every later one
    falls = values[:-1] - values[1:]
    if not falls.size:
        return "is learned last, so no later stage can lower it"
    place = int(np.argmax(falls))
    if falls[place] <= 0:
        return "does not fall in any later stage"
    stage = stage_number(TASKS[own + place + 1])
    return f"falls most in stage {stage}, from {values[place]:.3f} to {values[place + 1]:.3f}"


# ---- few stored images


def lost_classes(ious: pd.DataFrame) -> str:
    """A line a run: the classes that keep less than LOST of their IoU in the first column.

    ious: a row for each class, a column for each run, as tables.class_ious makes them. Classes that the first column
    hardly knows cannot be lost.
    """
    before, *runs = ious.columns
    known = ious[before] >= KNOWN
    lines = []
    for run in runs:
        lost = ious.index[known & (ious[run] < LOST * ious[before])]
        named = f": {', '.join(lost)}" if len(lost) else ""
        lines.append(f"- `{run}`: {len(lost)} of {known.sum()} classes{named}")
    return "\n".join(lines)


# ---- class by class


def class_extremes(metrics: Mapping[Task, TaskMetrics]) -> str:
    """A line a task: the classes with the highest and with the lowest value."""
    lines = []
    for task in TASKS:
        known = []
        for name, value in metrics[task].per_class.items():
            if value is not None:  # the set holds the class
                known.append((name, value))
        ranked = sorted(known, key=lambda pair: -pair[1])
        named = min(NAMED, max(1, len(ranked) // 2))  # no class stands at both ends, unless it is the only one
        highest = first_ones(ranked, named)
        lowest = first_ones(ranked[::-1], named)
        title = f"**{TASK_NAMES[task]}**, {CLASS_METRICS[task]}"
        lines.append(f"- {title}: highest {highest}; lowest {lowest}.")
    return "\n".join(lines)


def first_ones(ranked: Sequence[tuple[str, float]], count: int) -> str:
    """The first classes of a ranking with their values, and how many others have the value of the last one named."""
    shown = ranked[:count]
    text = ", ".join(f"{name} {value:.2f}" for name, value in shown)
    values = [value for _, value in ranked]
    tied = values[count:].count(values[count - 1]) if shown else 0
    return f"{text} (and {tied} more)" if tied else text


class Confusion(NamedTuple):
    """One class that is taken for another."""

    true: str
    predicted: str
    share: float  # of the true class's pixels or images

    def __str__(self) -> str:
        return f"{self.true} → {self.predicted} ({100 * self.share:.0f} %)"


def find_confusions(metrics: TaskMetrics, names: Sequence[str]) -> list[Confusion]:
    """Every class that is taken for another one, the largest share of the true class first."""
    matrix = np.array(metrics.confusion, dtype=float)  # (C, C), true class by row
    totals = np.maximum(matrix.sum(1, keepdims=True), 1)  # a class without examples stays 0
    shares = matrix / totals
    np.fill_diagonal(shares, 0)
    found = []
    for row, column in np.argwhere(shares > 0):
        confusion = Confusion(names[row], names[column], float(shares[row, column]))
        found.append(confusion)
    return sorted(found, key=lambda confusion: -confusion.share)


def largest_confusions(metrics: Mapping[Task, TaskMetrics], names: Mapping[Task, Sequence[str]]) -> str:
    """The largest confusions: of pixels with another class, of pixels with the background, and of images."""
    pixels = []
    missed = []
    for confusion in find_confusions(metrics["seg"], names["seg"]):
        if confusion.predicted == BACKGROUND:
            missed.append(confusion)
        elif confusion.true != BACKGROUND:
            pixels.append(confusion)
    images = find_confusions(metrics["cls"], names["cls"])
    lines = [
        f"- **{TASK_NAMES['seg']}**, pixels taken for another class: {listed(pixels)}.",
        f"- **{TASK_NAMES['seg']}**, pixels taken for background: {listed(missed)}.",
        f"- **{TASK_NAMES['cls']}**, images taken for another class: {listed(images)}.",
    ]
    return "\n".join(lines)


def listed(confusions: Sequence[Confusion]) -> str:
    """The first confusions as text."""
    texts = [str(confusion) for confusion in confusions[:NAMED]]
    return ", ".join(texts) or "none"


# ---- detection


def recall_reached(precision: np.ndarray, names: Sequence[str]) -> str:
    """How much of each class is found at all, from COCO's precision (overlaps, 101, C) at an overlap of .5."""
    reached = {}
    for name, values in zip(names, precision[0].T, strict=True):
        if values.min() > -1:  # COCO's -1: no object of this class
            recalls = RECALLS[values > 0]
            reached[name] = float(recalls.max(initial=0))
    if not reached:
        return "There is no object."
    short = sum(recall < HALF for recall in reached.values())
    first = min(reached, key=lambda name: reached[name])
    last = max(reached, key=lambda name: reached[name])
    classes = f"In {short} of {len(reached)} classes fewer than half of the objects are found at any score."
    ends = f"The curve of *{first}* ends first (recall {reached[first]:.2f})"
    return f"{classes} {ends}, that of *{last}* last ({reached[last]:.2f})."


def costliest_error(breakdown: Breakdown) -> str:
    """The kind of error that costs most mAP@50, and the sizes of objects with the lowest and the highest AP@50."""
    kind = max(breakdown.gains, key=lambda name: breakdown.gains[name])
    gain = breakdown.gains[kind]
    if gain > 0:
        count = breakdown.errors[kind]
        cost = f"*{kind}* costs most: without these {count} errors mAP@50 would be {gain:.3f} higher."
    else:
        cost = "No kind of error would raise mAP@50 if it alone were mended."
    return f"{cost} {sizes_sentence(breakdown.sizes)}".strip()


def sizes_sentence(sizes: Mapping[str, SizeScores]) -> str:
    """The sizes of objects with the lowest and the highest AP@50; nothing where fewer than two sizes have objects."""
    known = {}
    for name, scores in sizes.items():
        if scores.ap50 is not None:
            known[name] = scores.ap50
    if len(known) < 2:
        return ""
    low = min(known, key=lambda name: known[name])
    high = max(known, key=lambda name: known[name])
    at_low = f"*{low}* objects ({known[low]:.3f})"
    at_high = f"*{high}* ones ({known[high]:.3f})"
    return f"AP@50 is lowest for {at_low} and highest for {at_high}."


# ---- the side of the input


def size_dependence(rows: Sequence[SizeRow]) -> str:
    """A line a task: its lowest and its highest metric over the sides of the input; then which one depends most."""
    lines = []
    falls: dict[Task, float] = {}
    for task in TASKS:
        lowest = min(rows, key=lambda row: row.values[task])
        highest = max(rows, key=lambda row: row.values[task])
        low = lowest.values[task]
        high = highest.values[task]
        falls[task] = 1 - low / high if high else 0.0
        span = f"lowest {low:.3f} (side {lowest.size}), highest {high:.3f} (side {highest.size})"
        below = f"the lowest is {100 * falls[task]:.0f} % below the highest"
        lines.append(f"- **{METRIC_NAMES[task]}**: {span}; {below}.")
    most = max(TASKS, key=lambda task: falls[task])
    if falls[most] > 0:
        lines.append(f"\n**{METRIC_NAMES[most]}** depends most on the side of the input.")
    return "\n".join(lines)
