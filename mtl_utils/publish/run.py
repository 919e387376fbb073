"""Make a finished run the one that the repository shows: metrics, weights, notebooks and figures."""

import re
from pathlib import Path

import nbformat

from mtl_utils import files
from mtl_utils.files import UserError, write_json
from mtl_utils.forgetting import drops
from mtl_utils.prepare.root import SYNTHETIC
from mtl_utils.publish.readme import PAGES, read, write_bytes, write_text
from mtl_utils.run import RunMetrics, read_metrics
from mtl_utils.tasks import METRIC_NAMES, TASKS, stage_name

PICTURE = re.compile(r"\]\(([^)\s]+\.png)\)")  # the path of a figure in markdown, relative to the page


def take_over(run: Path) -> None:
    """Copy a finished run on real photographs into the repository: metrics, final weights, notebooks, figures.

    Nothing is written before all is read and fits. Raises UserError when the run is unfinished, synthetic, lacks a
    figure, or has a notebook with other code.
    """
    metrics = read_metrics(run / "metrics.json")
    drops(metrics.stage_metrics)  # raises where a stage is missing
    if metrics.left_out:
        raise UserError(f"{run} was made without some images: publish a run on whole sets.")
    if metrics.source.startswith(SYNTHETIC):
        raise UserError(f"{run} was made on synthetic sets: publish a run on real photographs.")

    copies = {
        run / "metrics.json": files.COMMITTED_METRICS,
        run / "sizes.json": files.COMMITTED_SIZES,
        run / f"{stage_name(TASKS[-1])}.pt": files.COMMITTED_WEIGHTS,
    }
    for name in shown_figures():
        copies[run / "figures" / name] = files.COMMITTED_METRICS.parent / name
    contents = read_all(copies)
    notebooks = {}
    for path in sorted(run.glob("*.ipynb")):
        target = files.NOTEBOOKS / path.name
        notebooks[target] = with_outputs(target, path)

    for target, content in contents.items():
        write_bytes(target, content)
    for target, text in notebooks.items():
        write_text(target, text)
    write_card(metrics)


def shown_figures() -> list[str]:
    """The names of the PNG files in figures/ itself that a page shows."""
    figures = (files.PROJECT / "figures").resolve()
    names = set()
    for page in PAGES:
        folder = (files.PROJECT / page).parent
        for link in PICTURE.findall(read(page)):
            path = (folder / link).resolve()
            if path.parent == figures:
                names.add(path.name)
    return sorted(names)


def read_all(copies: dict[Path, Path]) -> dict[Path, bytes]:
    """The contents to write, by target, of files to copy, source to target."""
    contents = {}
    for source, target in copies.items():
        try:
            contents[target] = source.read_bytes()
        except OSError as error:
            remedy = "execute the notebooks in that run first"
            raise UserError(f"{source} cannot be read ({error.strerror}): {remedy}.") from error
    return contents


def with_outputs(target: Path, executed: Path) -> str:
    """The text of a notebook with the outputs of its executed copy.

    Its text and its tags may have been edited since. Raises UserError where its code was.
    """
    new = nbformat.read(executed, as_version=4)
    notebook = nbformat.read(target, as_version=4)
    theirs = code_cells(new)
    ours = code_cells(notebook)
    if [cell.source for cell in theirs] != [cell.source for cell in ours]:
        raise UserError(f"{target.name} has other code than {executed}: execute it in that run first.")
    for cell, done in zip(ours, theirs, strict=True):
        cell.outputs = done.outputs
        cell.execution_count = done.execution_count
        # an executed copy may be older than the tags
        tags = cell.metadata.get("tags", [])
        cell.metadata = done.metadata
        if tags:
            cell.metadata["tags"] = tags
        else:
            cell.metadata.pop("tags", None)
    notebook.metadata = new.metadata  # the states of widgets
    return nbformat.writes(notebook) + "\n"


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """The code cells of a notebook."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def write_card(metrics: RunMetrics) -> None:
    """Describe the committed weights in a JSON beside them: their hash, and the run that made them."""
    final = metrics.stages[TASKS[-1]].metrics
    card = {
        "file": files.COMMITTED_WEIGHTS.name,
        "sha256": files.sha256(files.COMMITTED_WEIGHTS),
        "val": {METRIC_NAMES[task]: final[task].value for task in TASKS},
        "minutes": {task: metrics.stages[task].minutes for task in TASKS},
        "initial_weights": metrics.key.initial_weights,
        "source": metrics.source,
        "device": metrics.device,
        "written": metrics.written,
        "settings": metrics.key.settings.as_dict(),
    }
    write_json(files.COMMITTED_WEIGHTS.with_suffix(".json"), card)
