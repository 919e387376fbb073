"""Tables of results: the stage by task matrix, the drops, and the runs of a study, all for display."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from mtl_utils import files
from mtl_utils.evaluation import StageMetrics, TaskMetrics, class_iou
from mtl_utils.experiments.costs import images_per_step
from mtl_utils.experiments.outcomes import Outcomes, pixel_matrices
from mtl_utils.experiments.plans import REPLAY
from mtl_utils.experiments.results import (
    Estimate,
    Retention,
    RunSummary,
    difference,
    five_percent_drop,
    mean_retention,
    passes,
    run_names,
    runs_named,
    seed_pairs,
)
from mtl_utils.forgetting import Drop, drops, five_percent_rule, floors, forgetting_numbers, r_matrix, verdict_text
from mtl_utils.run import read_metrics
from mtl_utils.tasks import METRIC_NAMES, TASKS, VOC_CLASSES, Task

MISSING = "–"  # a number that cannot be given

# ---- one run


BEFORE = "before any stage"  # the row of the network as it begins: ImageNet weights in the trunk, the rest at random


def stage_table(metrics: StageMetrics, before: dict[Task, TaskMetrics]) -> pd.DataFrame:
    """The trivial floors, the metrics before any stage and the R matrix, three digits, for display."""
    rows = [f"after stage {number}" for number, _ in enumerate(TASKS, 1)]
    columns = [METRIC_NAMES[task] for task in TASKS]
    table = pd.DataFrame(r_matrix(metrics), index=rows, columns=columns)
    floor = floors(metrics)
    table.loc["trivial floor"] = [floor.get(task, np.nan) for task in TASKS]
    table.loc[BEFORE] = [before[task].value if task in before else np.nan for task in TASKS]
    return table.loc[["trivial floor", BEFORE, *rows]].map(three_digits)


def scores_so_far(metrics: dict[Task, TaskMetrics], stage: Task) -> pd.DataFrame:
    """The metrics after a stage for display: the value, its floor, and what the committed run reached then."""
    committed = read_metrics(files.COMMITTED_METRICS)
    settings = committed.key.settings
    column = f"committed run ({settings.profile}, seed {settings.seed})"
    rows = {}
    for task, result in metrics.items():
        theirs = committed.stages[stage].metrics[task]
        rows[result.name] = {"value": result.value, "floor": result.floor, column: theirs.value}
    return pd.DataFrame(rows).T.map(three_digits)


def three_digits(value: float) -> str:
    """A metric as text; nothing for NaN."""
    return "" if np.isnan(value) else f"{value:.3f}"


def forgetting_table(metrics: StageMetrics, alone: Mapping[Task, float] | None = None) -> pd.DataFrame:
    """The drops for display, with both readings of the 5 % rule. Raises UserError while a stage is missing.

    alone: what each task reaches learned alone, as far as it has been run. The baseline is the larger of it and of the
    value at the end of the task's own stage.
    """
    known = alone or {}
    own_stage = drops(metrics)
    rows = {}
    for own, drop in zip(own_stage, largest_baseline_drops(metrics, known), strict=True):
        single = known.get(own.task)
        row = {"single-task": MISSING if single is None else f"{single:.3f}", "own stage": f"{own.baseline:.3f}"}
        rows[METRIC_NAMES[own.task]] = row | drop_row(drop)
    return pd.DataFrame(rows).T


def largest_baseline_drops(metrics: StageMetrics, alone: Mapping[Task, float]) -> list[Drop]:
    """The 5 % rule for each task against the larger of its value at its own stage and of what it reaches alone.

    Raises UserError while a stage is missing.
    """
    results = []
    for own in drops(metrics):
        baselines = [own.baseline, alone.get(own.task, 0.0)]
        results.append(five_percent_rule(own.task, own.final, baselines, own.floor))
    return results


def drop_row(drop: Drop) -> dict[str, str]:
    """One row of the table."""
    relative = f"{100 * drop.drop / drop.baseline:+.1f}" if drop.baseline else "-"
    return {
        "baseline": f"{drop.baseline:.3f}",
        "final": f"{drop.final:.3f}",
        "drop": f"{drop.drop:+.3f}",
        "drop, % of baseline": relative,
        "within 5 points": verdict_text(drop.within_points),
        "within 5 % of baseline": verdict_text(drop.within_relative),
    }


# ---- masks class by class


def class_ious(outcomes: Mapping[str, Outcomes]) -> pd.DataFrame:
    """IoU of each class of the masks by run, NaN where a class occurs nowhere. outcomes: of segmentation, by run."""
    columns = {}
    for name, of_run in outcomes.items():
        matrix = torch.from_numpy(pixel_matrices(of_run).sum(0))  # (21, 21)
        columns[name] = class_iou(matrix).numpy()
    return pd.DataFrame(columns, index=list(VOC_CLASSES))


# ---- differences between runs


def differences_table(results: list[RunSummary], pairs: list[tuple[str, str]]) -> pd.DataFrame:
    """One row a pair of runs: how much higher the first one's final metrics are; a star marks an interval without 0."""
    rows = {f"{one} − {other}": difference_row(results, one, other) for one, other in pairs}
    return pd.DataFrame(rows).T


def difference_row(results: list[RunSummary], one: str, other: str) -> dict[str, str]:
    """One row of the table."""
    seeds = len(seed_pairs(results, one, other))
    row = {"seeds": str(seeds)}
    for task in TASKS:
        estimate = difference(results, one, other, task)
        row[METRIC_NAMES[task]] = difference_text(estimate)
    return row


def difference_text(estimate: Estimate) -> str:
    """A difference with its interval."""
    text = f"{estimate.value:+.3f} [{estimate.low:+.3f}, {estimate.high:+.3f}]"
    return f"{text} *" if estimate.leaves_out_zero else text


# ---- the runs of a study


def evidence_table(results: list[RunSummary]) -> pd.DataFrame:
    """One row a run: final metrics (mean over seeds), retention with its interval, and the other numbers.

    The first row is the default's before any stage.
    """
    names = run_names(results)
    rows = {name: table_row(results, name) for name in names}
    rows[BEFORE] = before_row(results)  # the columns keep the order of the runs' rows
    table = pd.DataFrame(rows).T.fillna(MISSING)  # columns that do not apply to a row
    return table.loc[[BEFORE, *names]]


def before_row(results: list[RunSummary]) -> dict[str, str]:
    """The metrics of the default's network before any stage; the other columns do not apply."""
    runs = runs_named(results, REPLAY.name)
    row = {"seeds": str(len(runs))}
    for task in TASKS:
        row[METRIC_NAMES[task]] = mean_text([run.before[task] for run in runs])
    return row


def seeds_table(results: list[RunSummary], name: str) -> pd.DataFrame:
    """One row a seed of a run, against the tasks alone of that seed: the verdict of every single run."""
    rows = {}
    for seed in sorted(run.seed for run in runs_named(results, name)):
        of_seed = [run for run in results if run.seed == seed]
        rows[seed] = table_row(of_seed, name) | {"least % of a baseline": least_kept(of_seed, name)}
    table = pd.DataFrame(rows).T
    return table.drop(columns="seeds").rename_axis("seed")


def least_kept(results: list[RunSummary], name: str) -> str:
    """The task that keeps least of its larger baseline, on which the 5 % rule depends."""
    drops = [five_percent_drop(results, name, task) for task in TASKS]
    known = [drop for drop in drops if drop is not None]
    if not known:
        return MISSING
    worst = min(known, key=lambda drop: drop.final)
    return f"{100 * worst.final:.1f} ({METRIC_NAMES[worst.task]})"


def table_row(results: list[RunSummary], name: str) -> dict[str, str]:
    """One row of the table."""
    return row_text(summary_row(results, name))


@dataclass(frozen=True)
class SummaryRow:
    """The numbers of one run over its seeds; None where they cannot be given."""

    finals: dict[Task, list[float]]  # the final metric of each seed
    retention: dict[Task, Retention | None]
    passed: bool | None  # the 5 % rule
    average: float  # of the final metrics
    gain: float | None  # mean retention of all tasks, less 1
    forgetting: dict[str, float]  # BWT and forgetting, of runs with all three stages
    stored: float  # megabytes that the last stage needed of the earlier ones
    images: int | None  # that a training step of stage 2 computes; None where there is no stage 2

    @property
    def seeds(self) -> int:
        """How many runs there are."""
        return len(self.finals[TASKS[0]])


def summary_row(results: list[RunSummary], name: str) -> SummaryRow:
    """The numbers of a run whose seeds measured all three tasks."""
    runs = runs_named(results, name)
    finals = {}
    retention = {}
    for task in TASKS:
        finals[task] = [run.final(task) for run in runs]
        retention[task] = mean_retention(results, name, task)
    return SummaryRow(
        finals=finals,
        retention=retention,
        passed=passes(results, name),
        average=float(np.mean([run.matrix[-1].mean() for run in runs])),
        gain=mean_gain(retention),
        forgetting=mean_forgetting(runs),
        stored=float(np.mean([run.stored_bytes for run in runs])) / 1e6,
        images=None if runs[0].settings.joint else images_per_step(runs[0].settings),
    )


def mean_gain(retention: dict[Task, Retention | None]) -> float | None:
    """The mean gain over the tasks alone, as a part of them; None while a task has no baseline."""
    values = [kept.value for kept in retention.values() if kept is not None]
    if len(values) < len(TASKS):
        return None
    return float(np.mean(values)) - 1


def mean_forgetting(runs: list[RunSummary]) -> dict[str, float]:
    """BWT and forgetting, means over seeds; nothing where a run has fewer than three stages."""
    if any(len(run.metrics) < len(TASKS) for run in runs):
        return {}
    numbers = [forgetting_numbers(run.matrix) for run in runs]
    means = {}
    for key in ("BWT", "forgetting"):
        means[key] = float(np.mean([of_run[key] for of_run in numbers]))
    return means


def row_text(row: SummaryRow) -> dict[str, str]:
    """A row of numbers as text; columns that do not apply are left out."""
    text = {"seeds": str(row.seeds)}
    for task in TASKS:
        name = METRIC_NAMES[task]
        text[name] = mean_text(row.finals[task])
        text[f"{name}, % of alone"] = retention_text(row.retention[task], row.seeds)
    text["5 % rule"] = MISSING if row.passed is None else verdict_text(row.passed)
    text["average"] = f"{row.average:.3f}"
    text["gain, %"] = MISSING if row.gain is None else f"{100 * row.gain:+.1f}"
    for key, value in row.forgetting.items():
        text[key] = f"{value:+.3f}"
    text["stored, MB"] = f"{row.stored:.1f}"
    text["images a step"] = MISSING if row.images is None else str(row.images)
    return text


def mean_text(values: list[float]) -> str:
    """Mean, and standard deviation where there are several values."""
    mean = f"{np.mean(values):.3f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {np.std(values, ddof=1):.3f}"


def retention_text(retention: Retention | None, seeds: int) -> str:
    """Retention in per cent with its interval, and of how many seeds, where not all have a baseline."""
    if retention is None:
        return MISSING
    # a decimal, since the rule cuts at 95
    text = f"{100 * retention.value:.1f} [{100 * retention.low:.0f}, {100 * retention.high:.0f}]"
    return text if retention.seeds == seeds else f"{text} (of {retention.seeds})"
