"""Recomputes what the project publishes, from what its models predicted for each image: results, then tables."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mtl_utils import files
from mtl_utils.experiments.bootstrap import bootstrap_metric, metric_of_set, stored_draws
from mtl_utils.experiments.outcomes import Outcomes
from mtl_utils.experiments.results import RunSummary, outcomes_path, read_result
from mtl_utils.files import UserError
from mtl_utils.publish import readme
from mtl_utils.tasks import METRIC_NAMES, Task

# by which a metric may differ: another computer may round a pixel to the other side; a stored resample by one unit
ROUNDING = 1e-5
END_OF_PAGE = "<end of the page>"  # differs from every line
RUN_IT_AGAIN = "run the study again"


def recheck() -> str:
    """Compute all stored results and tables again; returns how many there were.

    Raises UserError at the first that differs, and where a file is missing.
    """
    paths = result_paths()
    values = 0
    for path in paths:
        values += check_run(path)
    for page in readme.PAGES:
        check_page(page)
    return f"{len(paths)} runs, {values} metrics with their resamples, and {len(readme.PAGES)} pages: all as stored"


def result_paths() -> list[Path]:
    """The summaries of all runs, of every profile and fold."""
    paths = []
    for profile in readme.STUDIED:
        folder = files.STUDY_RESULTS / profile
        paths += sorted(folder.glob("*.json"))
        paths += sorted(folder.glob("fold*/*.json"))
    return paths


def check_run(path: Path) -> int:
    """Compare a run's metrics and resamples with those of its images' outcomes; returns how many metrics it has.

    Raises UserError at the first that differs.
    """
    run = read_result(path)
    stored: dict[Task, dict[Task, Outcomes]] = files.read_json(outcomes_path(path), RUN_IT_AGAIN)
    if tasks_by_stage(run.bootstrap_draws) != tasks_by_stage(stored):
        raise UserError(f"{outcomes_path(path)} holds other stages or tasks than {path}: {RUN_IT_AGAIN}.")
    values = 0
    for stage, of_tasks in stored.items():
        for task, outcomes in of_tasks.items():
            compare(path, run, stage, task, outcomes)
            values += 1
    return values


def tasks_by_stage(values: Mapping[Task, Mapping[Task, Any]]) -> dict[Task, set[Task]]:
    """The tasks that have a value, by stage."""
    return {stage: set(of_tasks) for stage, of_tasks in values.items()}


def compare(path: Path, run: RunSummary, stage: Task, task: Task, outcomes: Outcomes) -> None:
    """Raise UserError where the metric of a task after a stage, or its resamples, do not follow from the outcomes."""
    images = image_count(task, outcomes)
    value = metric_of_set(task, outcomes, images)
    stored = run.metrics[stage][task].value
    if abs(value - stored) > ROUNDING:
        name = METRIC_NAMES[task]
        raise UserError(f"{path}: {name} is {stored:.6f}, but its images give {value:.6f}: {RUN_IT_AGAIN}.")
    old = np.array(run.bootstrap_draws[stage][task])
    new = np.array(stored_draws(bootstrap_metric(task, outcomes, images)))
    different = np.flatnonzero(np.abs(old - new) > 1)
    if len(different):
        number = different[0]
        values = f"{old[number]}, not {new[number]}"
        raise UserError(f"{path}: resample {number + 1} of {METRIC_NAMES[task]} is {values}: {RUN_IT_AGAIN}.")


def image_count(task: Task, outcomes: Outcomes) -> int:
    """The images of a set, from its outcomes."""
    return len(outcomes[0]["objects"]) if task == "det" else len(outcomes)


def check_page(page: str) -> None:
    """Raise UserError where a page's generated parts are not what the results give."""
    old = [*readme.read(page).splitlines(), END_OF_PAGE]
    new = [*readme.remade(page).splitlines(), END_OF_PAGE]
    if old == new:
        return
    number = 0
    while old[number] == new[number]:
        number += 1
    raise UserError(f"{page}, line {number + 1} is not what the results give: run `python -m mtl_utils publish`.")
