"""The results of studies: one summary a run, and what several of them say together.

Retention is a run's final metric as a part of what the task reaches learned alone with the same seed. Every metric has
been measured on the same resamples of the val images, so that ratios and differences are paired (see bootstrap.py).
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mtl_utils.evaluation import StageMetrics, TaskMetrics
from mtl_utils.experiments.bootstrap import STORED_SCALE, interval
from mtl_utils.experiments.outcomes import Outcomes
from mtl_utils.experiments.plans import BUFFER_ENDS, REPLAY, SINGLE_TASK
from mtl_utils.files import UserError, read_json
from mtl_utils.forgetting import Drop, five_percent_rule, r_matrix
from mtl_utils.run import RunKey
from mtl_utils.settings import Settings
from mtl_utils.tasks import METRIC_NAMES, TASKS, Task

BUFFER_SETTINGS = {"buffer_size", "exemplar_selection"}  # what the runs of the buffer sizes change, and nothing else

ValCurve = list[tuple[int, dict[Task, float]]]  # epochs of a stage with an evaluation, and the tasks' metrics then


# ---- one run


@dataclass(frozen=True)
class RunSummary:
    """One run of a study, as its JSON holds it."""

    name: str  # of its plan
    overrides: dict[str, Any]  # what it changes in the profile's settings
    settings: Settings
    data_fingerprints: dict[Task, str]  # of the set of each of its tasks
    initial_weights: str  # label of the starting weights
    source: str  # which data
    device: str  # "cuda", "mps" or "cpu"
    provenance: dict[str, Any]  # of the last stage
    minutes: dict[Task, float | None]  # of training, by stage
    stored_bytes: int  # that the last stage needed of the earlier ones (see costs.py)
    before: dict[Task, float]  # the metric of each of the run's tasks before any stage
    metrics: StageMetrics  # after each stage of every task learned by then: value and floor alone
    val_curve: dict[Task, ValCurve]  # by stage
    # a task's metric on every resample, as whole numbers of 1 / STORED_SCALE: by stage and task
    bootstrap_draws: dict[Task, dict[Task, list[int]]]

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return self.settings.seed

    @property
    def last(self) -> Task:
        """The last stage."""
        return list(self.metrics)[-1]

    @property
    def matrix(self) -> np.ndarray:
        """R (3, 3), stages by row and tasks by column; NaN where a task was not measured."""
        return r_matrix(self.metrics)

    @property
    def is_complete(self) -> bool:
        """Whether all three tasks were measured at the end."""
        return not np.isnan(self.matrix[-1]).any()

    @property
    def changes_buffer_only(self) -> bool:
        """Whether the run changes nothing but how many images are stored, and which."""
        return set(self.overrides) == BUFFER_SETTINGS

    def final(self, task: Task) -> float:
        """The metric of a task after the last stage."""
        return self.metrics[self.last][task].value

    def floor(self, task: Task) -> float:
        """What the trivial prediction of a task scores."""
        return self.metrics[self.last][task].floor

    def own_stage(self, task: Task) -> float:
        """The metric of a task at the end of its own stage, NaN where it has none of its own, as in joint training."""
        index = TASKS.index(task)
        return float(self.matrix[index, index])

    def resamples(self, stage: Task, task: Task) -> np.ndarray:
        """The metric of a task after a stage on every resample (resamples,), in units of 1 / STORED_SCALE."""
        return np.array(self.bootstrap_draws[stage][task], dtype=float)

    def final_resamples(self, task: Task) -> np.ndarray:
        """The metric of a task after the last stage on every resample (resamples,)."""
        return self.resamples(self.last, task) / STORED_SCALE

    def as_dict(self) -> dict[str, Any]:
        """Plain types, as a study's JSON holds them."""
        metrics: dict[Task, dict[Task, dict[str, float]]] = {}
        for stage, of_tasks in self.metrics.items():
            metrics[stage] = {}
            for task, result in of_tasks.items():
                metrics[stage][task] = {result.name: result.value, "floor": result.floor}
        known = {"provenance": self.provenance} if self.provenance else {}  # older results have none
        return {
            "name": self.name,
            "overrides": self.overrides,
            "settings": self.settings.as_dict(),
            "data_fingerprints": self.data_fingerprints,
            "initial_weights": self.initial_weights,
            "source": self.source,
            "device": self.device,
            "minutes": self.minutes,
            "stored_bytes": self.stored_bytes,
            "before": self.before,
            "metrics": metrics,
            "val_curve": self.val_curve,
            "bootstrap_draws": self.bootstrap_draws,
            **known,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "RunSummary":
        """The inverse of as_dict. Raises KeyError or TypeError where a value is missing or unknown."""
        metrics: StageMetrics = {}
        for stage, of_tasks in values["metrics"].items():
            metrics[stage] = {task: stored_metrics(task, stored) for task, stored in of_tasks.items()}
        curves: dict[Task, ValCurve] = {}
        for stage, points in values["val_curve"].items():
            curves[stage] = [(epoch, scores) for epoch, scores in points]
        settings = Settings.from_dict(values["settings"])
        known = {"settings": settings, "metrics": metrics, "val_curve": curves}
        return cls(**({"provenance": {}} | values | known))  # nothing is known of what made older results


def stored_metrics(task: Task, values: dict[str, float]) -> TaskMetrics:
    """A task's metrics as far as a study stores them: its value and its floor."""
    return TaskMetrics(task, value=values[METRIC_NAMES[task]], floor=values["floor"], per_class={}, images=0)


def read_results(folder: Path) -> list[RunSummary]:
    """The summaries of all runs of a profile. Raises UserError for the first that is damaged."""
    return [read_result(path) for path in sorted(folder.glob("*.json"))]


def fold_folder(folder: Path, fold: int) -> Path:
    """Where a folder keeps what belongs to a fold of cross-validation; fold 0 is the published split."""
    return folder / f"fold{fold}" if fold else folder


def read_folds(folder: Path) -> list[list[RunSummary]]:
    """The summaries of all runs of a profile, a list for each fold of cross-validation that has any.

    Raises UserError for the first that is damaged.
    """
    folds = [read_results(folder)]
    for path in sorted(folder.glob("fold*/")):
        folds.append(read_results(path))
    return [results for results in folds if results]


def read_result(path: Path) -> RunSummary:
    """The summary of one run. Raises UserError when the file is damaged."""
    remedy = "delete it and run the study again"
    values = read_json(path, remedy)
    try:
        return RunSummary.from_dict(values)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error!r}): {remedy}.") from error


def outcomes_path(path: Path) -> Path:
    """Where the predictions for each image lie, by stage and task, of the run whose summary lies at `path`."""
    return path.parent / "images" / path.name


def read_outcomes(folder: Path, name: str, seed: int) -> dict[Task, dict[Task, Outcomes]]:
    """What a run's models predicted for each val image, by stage and task (see outcomes.py).

    Raises UserError where the run is missing.
    """
    path = outcomes_path(folder / f"{name}_seed{seed}.json")
    outcomes: dict[Task, dict[Task, Outcomes]] = read_json(path, "run the study again")
    return outcomes


# ---- which runs there are


def runs_named(results: Iterable[RunSummary], name: str) -> list[RunSummary]:
    """The runs of a name, one a seed."""
    return [run for run in results if run.name == name]


def find_run(results: Iterable[RunSummary], name: str, seed: int) -> RunSummary | None:
    """One run, None where it has not been made."""
    for run in results:
        if run.name == name and run.seed == seed:
            return run
    return None


def run_names(results: list[RunSummary]) -> list[str]:
    """The names of all runs that measured every task: the default first, the others from the best average down."""
    averages: dict[str, list[float]] = {}
    for run in results:
        if run.is_complete:
            average = run.matrix[-1].mean()
            averages.setdefault(run.name, []).append(average)

    def place(name: str) -> tuple[bool, float]:
        return name != REPLAY.name, -float(np.mean(averages[name]))

    return sorted(averages, key=place)


def remedies(results: list[RunSummary]) -> list[str]:
    """The names of the runs that differ in more than the replay buffer's images, and of those with and without any."""
    buffer_runs = {run.name for run in results if run.changes_buffer_only}
    return [name for name in run_names(results) if name not in buffer_runs]


def buffer_sizes(results: list[RunSummary]) -> dict[str, dict[int, str]]:
    """The runs that differ in the replay buffer's images alone: {selection: {stored images a task: name}}.

    All selections have the same ends: no replay, and the default, which stores everything.
    """
    names = run_names(results)
    ends = {size: plan.name for size, plan in BUFFER_ENDS.items() if plan.name in names}
    by_selection: dict[str, dict[int, str]] = {}
    for run in results:
        if run.changes_buffer_only:
            runs = by_selection.setdefault(run.settings.exemplar_selection, {})
            runs[run.settings.buffer_size] = run.name
    if not by_selection:
        by_selection["balanced"] = {}
    sizes = {}
    for selection, runs in sorted(by_selection.items()):
        sizes[selection] = dict(sorted((runs | ends).items()))
    return sizes


def same_seeds(results: list[RunSummary], names: Iterable[str]) -> list[RunSummary]:
    """The results of the seeds that all of these runs share: other seeds add variation of their own."""
    shared = {run.seed for run in results}
    for name in names:
        shared &= {run.seed for run in runs_named(results, name)}
    return [run for run in results if run.seed in shared]


def stage_offsets(run: RunSummary) -> dict[Task, int]:
    """How many epochs of a run lie before each of its stages."""
    offsets = {}
    before = 0
    for stage in run.val_curve:
        offsets[stage] = before
        before += run.settings.epochs[stage]
    return offsets


# ---- final metrics and their differences


@dataclass(frozen=True)
class Estimate:
    """A number and its interval over resamples of images."""

    value: float
    low: float
    high: float

    @property
    def leaves_out_zero(self) -> bool:
        """Whether the interval lies on one side of 0."""
        return self.low > 0 or self.high < 0


def final_scores(results: list[RunSummary], name: str, task: Task) -> dict[int, Estimate]:
    """The final metric of a run by its seeds, in order."""
    by_seed = {run.seed: run for run in runs_named(results, name)}
    scores = {}
    for seed, run in sorted(by_seed.items()):
        low, high = interval(run.final_resamples(task))
        scores[seed] = Estimate(run.final(task), low, high)
    return scores


def seed_pairs(results: list[RunSummary], one: str, other: str) -> list[tuple[RunSummary, RunSummary]]:
    """The runs of two names with the same seed. Raises UserError where there is none."""
    pairs = []
    for run in runs_named(results, one):
        partner = find_run(results, other, run.seed)
        if partner is not None:
            pairs.append((run, partner))
    if not pairs:
        raise UserError(f"There is no seed that both {one} and {other} were run with: see `python -m mtl_utils study`.")
    return pairs


def difference(results: list[RunSummary], one: str, other: str, task: Task) -> Estimate:
    """How much higher the final metric of one run is than another's: the mean over the seeds that both have.

    Raises UserError where there is no such seed.
    """
    values = []
    resamples = []
    for run, partner in seed_pairs(results, one, other):
        values.append(run.final(task) - partner.final(task))
        resamples.append(run.final_resamples(task) - partner.final_resamples(task))
    low, high = interval(np.mean(resamples, axis=0))
    return Estimate(float(np.mean(values)), low, high)


# ---- retention and the 5 % rule


@dataclass(frozen=True)
class Retention(Estimate):
    """Final metric as a part of the task alone: the mean over seeds."""

    seeds: int  # that have a single-task baseline


def single_task_run(results: Iterable[RunSummary], seed: int, task: Task) -> RunSummary | None:
    """The run of a seed whose first stage is this task alone, None where it has not been made."""
    return find_run(results, SINGLE_TASK[task].name, seed)


def alone_values(results: list[RunSummary], seed: int) -> dict[Task, float]:
    """The metric of each task learned alone with a seed, as far as it has been run."""
    values = {}
    for task in TASKS:
        single = single_task_run(results, seed, task)
        if single is not None:
            values[task] = single.own_stage(task)
    return values


def comparable_alone(results: list[RunSummary], key: RunKey) -> dict[Task, float]:
    """The metric of each task learned alone with the settings, data and starting weights of a run, where it was run."""
    values = {}
    for task, value in alone_values(results, key.settings.seed).items():
        single = single_task_run(results, key.settings.seed, task)
        if single is not None and differs_in_tasks_alone(single, key, task):
            values[task] = value
    return values


def differs_in_tasks_alone(single: RunSummary, key: RunKey, task: Task) -> bool:
    """Whether a single-task run learned its task as a run did, but for the other tasks."""
    learned = replace(single.settings, tasks=key.settings.tasks)
    same_settings = learned.of_tasks([task]) == key.settings.of_tasks([task])
    same_data = single.data_fingerprints.get(task) == key.data_fingerprints.get(task)
    return same_settings and same_data and single.initial_weights == key.initial_weights


def mean_retention(results: list[RunSummary], name: str, task: Task) -> Retention | None:
    """Mean retention of a task over the seeds of a run; None where no seed has a single-task baseline above 0."""
    values = []
    resamples = []
    for run in runs_named(results, name):
        single = single_task_run(results, run.seed, task)
        if single is None or task not in run.metrics[run.last] or not single.own_stage(task):
            continue
        values.append(run.final(task) / single.own_stage(task))
        resamples.append(ratio(run.resamples(run.last, task), single.resamples(task, task)))
    if not values:
        return None
    mean = np.mean(resamples, axis=0)  # (resamples,)
    low, high = interval(mean[~np.isnan(mean)])
    return Retention(float(np.mean(values)), low, high, len(values))


def ratio(values: np.ndarray, baseline: np.ndarray) -> np.ndarray:
    """The ratio (resamples,) of two metrics on the same resamples; NaN where the baseline is 0."""
    return np.divide(values, baseline, out=np.full_like(values, np.nan), where=baseline > 0)


def five_percent_drop(results: list[RunSummary], name: str, task: Task) -> Drop | None:
    """The 5 % rule for a task in the mean over the seeds of a run, in parts of each seed's larger baseline.

    None while a seed lacks its single-task baseline: the seeds that have theirs may not be typical of all.
    """
    runs = runs_named(results, name)
    alone = [alone_values(results, run.seed).get(task, 0.0) for run in runs]
    if not all(alone):
        return None
    drops = [ratio_drop(task, runs, alone)]
    own = [run.own_stage(task) for run in runs]
    if all(value > 0 for value in own):  # NaN is not
        drops.append(ratio_drop(task, runs, own))
    return min(drops, key=lambda drop: drop.final)  # the larger baseline leaves the smaller part


def ratio_drop(task: Task, runs: list[RunSummary], baselines: list[float]) -> Drop:
    """The 5 % rule for the mean over seeds, final metric and floor as parts of the seeds' baselines, one a run."""
    finals = [run.final(task) / baseline for run, baseline in zip(runs, baselines, strict=True)]
    floors = [run.floor(task) / baseline for run, baseline in zip(runs, baselines, strict=True)]
    return five_percent_rule(task, float(np.mean(finals)), [1.0], float(np.mean(floors)))


def passes(results: list[RunSummary], name: str) -> bool | None:
    """Whether a run passes the 5 % rule in all tasks; None while a baseline is missing."""
    drops = [five_percent_drop(results, name, task) for task in TASKS]
    known = [drop for drop in drops if drop is not None]
    if len(known) < len(TASKS):
        return None
    return all(drop.passed for drop in known)
