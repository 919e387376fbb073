"""Executing the six notebooks in order; leaving executed copies, an HTML page of each, and one of all."""

import os
import re
import subprocess
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbconvert import HTMLExporter
from tqdm.auto import tqdm

from mtl_utils import files
from mtl_utils.files import UserError, write_atomically

REPORT = "report.html"
HEADING = re.compile("^(##?) (.+)$", re.MULTILINE)  # of a section: the first of a cell
EVERYWHERE = ("Setup", "Summary", "Exercises")  # sections that every notebook has: not worth a line in the contents


def execute_all(folder: Path) -> None:
    """Execute every notebook of notebooks/ into `folder`. Raises UserError naming the first cell that fails."""
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    executed = []
    with tqdm(sorted(files.NOTEBOOKS.glob("*.ipynb")), desc="notebooks", unit="notebook") as bar:
        for path in bar:
            bar.set_postfix_str(path.stem)
            executed.append(execute(path))
            write_copies(executed[-1], folder, path.stem)
    page, _ = HTMLExporter().from_notebook_node(joined(executed))
    write_atomically(folder / REPORT, lambda file: file.write(page.encode()))


def execute(path: Path) -> nbformat.NotebookNode:
    """One notebook, executed from top to bottom in a fresh kernel; the file itself is not changed."""
    notebook = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": path.parent}}
    client = NotebookClient(notebook, timeout=None, kernel_name="python3", resources=where)
    try:
        return client.execute(stderr=subprocess.DEVNULL)  # what kernels say there is for nobody
    except CellExecutionError as error:
        last = f"{error.ename}: {error.evalue}"
        raise UserError(f"{path.name} stopped at a cell with {last}: mend this, then run again.") from error
    except DeadKernelError as error:
        raise UserError(f"{path.name}: its kernel died; was memory short? Run again to continue.") from error
    except AssertionError as error:  # on Ctrl-C nbclient ends the kernel itself, then stumbles over its absence
        raise KeyboardInterrupt from error


def write_copies(notebook: nbformat.NotebookNode, folder: Path, name: str) -> None:
    """The executed notebook and its HTML page."""
    page, _ = HTMLExporter().from_notebook_node(notebook)
    for ending, text in ((".ipynb", nbformat.writes(notebook) + "\n"), (".html", page)):
        write_atomically(folder / (name + ending), lambda file, text=text: file.write(text.encode()))


def joined(notebooks: list[nbformat.NotebookNode]) -> nbformat.NotebookNode:
    """Several notebooks as one, with a table of contents above."""
    cells = [cell.copy() for notebook in notebooks for cell in notebook.cells]
    lines = ["# Contents", ""]
    for number, cell in enumerate(cells):
        cell["id"] = f"cell{number}"  # some are alike in all notebooks
        found = HEADING.search(cell.source) if cell.cell_type == "markdown" else None
        if found and found[2] not in EVERYWHERE:
            lines.append(f"{'    ' * (len(found[1]) - 1)}- [{found[2]}](#section{number})")
            cell["source"] = f'<a id="section{number}"></a>\n\n{cell.source}'
    about = {**notebooks[0].metadata, "title": "The whole report", "widgets": joined_widgets(notebooks)}
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("\n".join(lines)), *cells], metadata=about)


def joined_widgets(notebooks: list[nbformat.NotebookNode]) -> dict:
    """The states of all widgets (progress bars) of several notebooks, as one notebook's metadata holds them."""
    merged: dict = {}
    for notebook in notebooks:
        for kind, content in notebook.metadata.get("widgets", {}).items():
            states = merged.get(kind, {}).get("state", {})
            merged[kind] = {**content, "state": states | content["state"]}
    return merged
