"""Make a finished run the one that the repository shows: metrics, weights, notebooks and figures."""

import hashlib
import re
import shutil
from pathlib import Path

import nbformat

from mtl_utils import files, forgetting
from mtl_utils.files import UserError, write_json
from mtl_utils.publish.readme import README_WORDS, read
from mtl_utils.tasks import METRIC_NAMES, TASKS


def take_over(run: Path) -> None:
    """Copy a finished run on real photographs into the repository: metrics, final weights, notebooks, figures."""
    metrics = forgetting.read_metrics(run / "metrics.json")
    forgetting.drops(metrics)  # says which stage is missing
    if metrics["source"].startswith("synthetic"):
        raise UserError(f"{run} was made on synthetic sets: publish a run on real photographs.")
    shown = set(re.findall(r"\(figures/(\w+\.png)\)", "".join(map(read, README_WORDS))))
    copies = {run / "metrics.json": files.COMMITTED_METRICS}
    copies[run / "stage3_classification.pt"] = files.COMMITTED_WEIGHTS
    copies |= {run / "figures" / name: files.COMMITTED_METRICS.parent / name for name in shown}
    for source, target in copies.items():
        shutil.copyfile(source, target)
    for path in run.glob("*.ipynb"):
        take_outputs(path, files.NOTEBOOKS / path.name)
    write_card(metrics)


def take_outputs(executed: Path, target: Path) -> None:
    """Give a notebook the outputs of its executed copy; its text may have been edited since, its code may not."""
    new, notebook = (nbformat.read(path, as_version=4) for path in (executed, target))
    theirs, ours = ([cell for cell in n.cells if cell.cell_type == "code"] for n in (new, notebook))
    if [cell.source for cell in theirs] != [cell.source for cell in ours]:
        raise UserError(f"{target.name} has other code than {executed}: execute it in that run first.")
    for cell, done in zip(ours, theirs, strict=True):
        cell.update(outputs=done.outputs, execution_count=done.execution_count, metadata=done.metadata)
    notebook.metadata = new.metadata
    target.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")


def write_card(metrics: dict) -> None:
    """Say beside the committed weights what they are."""
    scores = {METRIC_NAMES[task]: metrics["stages"]["cls"]["metrics"][task][METRIC_NAMES[task]] for task in TASKS}
    minutes = {task: metrics["stages"][task]["minutes"] for task in TASKS}
    digest = hashlib.sha256(files.COMMITTED_WEIGHTS.read_bytes()).hexdigest()
    about = {key: metrics[key] for key in ("initial_weights", "source", "device", "written", "settings")}
    card = {"file": files.COMMITTED_WEIGHTS.name, "sha256": digest, "val": scores, "minutes": minutes, **about}
    write_json(files.COMMITTED_WEIGHTS.with_suffix(".json"), card)
