"""The log of what was tried: one line a run in figures/runs.csv."""

import csv
import io
import json
from pathlib import Path

from mtl_utils import files
from mtl_utils.publish.readme import write_text
from mtl_utils.run import RunMetrics, StageResult, read_metrics
from mtl_utils.tasks import METRIC_NAMES, TASKS, Task, learned_by

LogRow = dict[str, str]  # cells by column name


def log_run(run: Path, note: str) -> None:
    """Put a line about a run, finished or not, at the end of the log; an older line of the same run is replaced.

    Raises UserError when the run has no metrics.json.
    """
    metrics = read_metrics(run / "metrics.json")
    rows = [row for row in read_log() if row["run"] != run.name]
    rows.append(log_row(run.name, note, metrics))

    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[-1]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(files.RUN_LOG, text.getvalue())


def read_log() -> list[LogRow]:
    """The lines of the log."""
    if not files.RUN_LOG.exists():
        return []
    with open(files.RUN_LOG, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def log_row(name: str, note: str, metrics: RunMetrics) -> LogRow:
    """One line: what was tried, settings, seed, metrics and minutes; a cell is empty where a stage is missing."""
    settings = metrics.key.settings.as_dict()
    del settings["profile"]  # follows from the other settings
    seed = settings.pop("seed")
    row = {
        "run": name,
        "note": note,
        "data": metrics.source.split(" (")[0],  # without how it was chosen
        "start": metrics.key.initial_weights.split(" ")[0],  # without its hash
        "seed": str(seed),
        "settings": json.dumps(settings),
    }
    for stage in TASKS:
        for task in learned_by(stage):
            row[f"{METRIC_NAMES[task]} after {stage}"] = score_cell(metrics.stages.get(stage), task)
    for stage in TASKS:
        row[f"minutes {stage}"] = minutes_cell(metrics.stages.get(stage))
    return row


def score_cell(stage: StageResult | None, task: Task) -> str:
    """The metric of a task after a stage."""
    if stage is None or task not in stage.metrics:
        return ""
    return f"{stage.metrics[task].value:.4f}"


def minutes_cell(stage: StageResult | None) -> str:
    """How long a stage was trained."""
    if stage is None or stage.minutes is None:
        return ""
    return f"{stage.minutes:.1f}"
