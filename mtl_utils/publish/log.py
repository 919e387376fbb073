"""The log of what was tried: one line a run in figures/runs.csv."""

import csv
import json
from pathlib import Path

from mtl_utils import files, forgetting
from mtl_utils.tasks import METRIC_NAMES, TASKS

SCORES = [(stage, task) for i, stage in enumerate(TASKS) for task in TASKS[: i + 1]]


def log_run(run: Path, note: str) -> None:
    """Add a line about a run, finished or not, to the log: what was tried, settings, seed, metrics, minutes."""
    metrics = forgetting.read_metrics(run / "metrics.json")
    stages = metrics["stages"]
    data, start = metrics["source"].split(" (")[0], metrics["initial_weights"].split(" ")[0]
    row = {"run": run.name, "note": note, "data": data, "start": start}
    settings = {key: value for key, value in metrics["settings"].items() if key not in ("profile", "seed")}
    row |= {"seed": metrics["settings"]["seed"], "settings": json.dumps(settings)}
    for stage, task in SCORES:
        value = stages.get(stage, {}).get("metrics", {}).get(task, {}).get(METRIC_NAMES[task])
        row[f"{METRIC_NAMES[task]} after {stage}"] = "" if value is None else f"{value:.4f}"
    row |= {f"minutes {task}": f"{stages[task]['minutes']:.1f}" if task in stages else "" for task in TASKS}
    rows = [r for r in read_log() if r["run"] != run.name] + [row]
    with open(files.RUN_LOG, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_log() -> list[dict]:
    """The lines of the log."""
    if not files.RUN_LOG.exists():
        return []
    with open(files.RUN_LOG, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
