"""Executing the six notebooks in order; leaving executed copies, an HTML page of each, and one of all."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbconvert import HTMLExporter

from mtl_utils import files
from mtl_utils.files import UserError
from mtl_utils.progress import progress
from mtl_utils.publish.readme import write_text

REPORT = "report.html"
STALE_BAR = re.compile(r"(?<!\d)\d{1,2}%\|")  # of tqdm, at less than 100 %
HEADING = re.compile("^(##?) (.+)$", re.MULTILINE)  # of a section: the first of a cell
EVERYWHERE = ("Setup", "Summary", "Exercises")  # sections of every notebook: not worth a line in the contents


def execute_all(folder: Path) -> None:
    """Execute every notebook of notebooks/ into `folder`. Raises UserError naming the first cell that fails."""
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")  # else every kernel prints the debugger's warning
    executed = []
    with progress(sorted(files.NOTEBOOKS.glob("*.ipynb")), desc="notebooks", unit="notebook") as bar:
        for path in bar:
            bar.set_postfix_str(path.stem)
            notebook = execute(path)
            write_copies(notebook, folder, path.stem)
            executed.append(notebook)
    write_text(folder / REPORT, html_page(joined(executed)))


def execute(path: Path) -> nbformat.NotebookNode:
    """One notebook, executed from top to bottom in a fresh kernel; the file itself is not changed.

    Raises UserError where a cell fails or the kernel dies, KeyboardInterrupt on Ctrl-C.
    """
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": path.parent}}  # the kernel's working folder
    client = NotebookClient(notebook, timeout=None, kernel_name="python3", resources=resources)
    try:
        executed = client.execute(stderr=subprocess.DEVNULL)  # what the kernel itself prints is of no use to the reader
    except CellExecutionError as error:
        cause = f"{error.ename}: {error.evalue}"
        raise UserError(f"{path.name} stopped at a cell with {cause}: fix this, then run again.") from error
    except DeadKernelError as error:
        raise UserError(f"{path.name}: its kernel died, possibly out of memory; run again to continue.") from error
    except AssertionError as error:  # on Ctrl-C nbclient ends the kernel itself, then stumbles over its absence
        raise KeyboardInterrupt from error
    return without_stale_bars(executed)


def without_stale_bars(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook without progress bars that ended before 100 %: a bar that is wiped out at its end is stored so."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not STALE_BAR.search(plain_text(output))]
    return notebook


def plain_text(output: nbformat.NotebookNode) -> str:
    """The text of an output, printed or displayed; nothing for one without any."""
    text = output.get("text", "") or output.get("data", {}).get("text/plain", "")
    return "".join(text)


def write_copies(notebook: nbformat.NotebookNode, folder: Path, name: str) -> None:
    """The executed notebook and its HTML page."""
    write_text(folder / f"{name}.ipynb", nbformat.writes(notebook) + "\n")
    write_text(folder / f"{name}.html", html_page(notebook))


def html_page(notebook: nbformat.NotebookNode) -> str:
    """A notebook as one HTML page."""
    page, _ = HTMLExporter().from_notebook_node(notebook)
    return str(page)


def joined(notebooks: list[nbformat.NotebookNode]) -> nbformat.NotebookNode:
    """Several notebooks as one, with a table of contents above."""
    cells = []
    for notebook in notebooks:
        for cell in notebook.cells:
            cells.append(cell.copy())

    contents = ["# Contents", ""]
    for number, cell in enumerate(cells):
        cell["id"] = f"cell{number}"  # some cells have the same id in all notebooks
        heading = section_heading(cell)
        if heading is not None:
            indent = "    " * (len(heading[1]) - 1)
            contents.append(f"{indent}- [{heading[2]}](#section{number})")
            cell["source"] = f'<a id="section{number}"></a>\n\n{cell.source}'

    first = nbformat.v4.new_markdown_cell("\n".join(contents))
    metadata = {**notebooks[0].metadata, "title": "The whole report", "widgets": joined_widgets(notebooks)}
    return nbformat.v4.new_notebook(cells=[first, *cells], metadata=metadata)


def section_heading(cell: nbformat.NotebookNode) -> re.Match[str] | None:
    """The heading that a cell begins a section with: its number signs and its title. None where it begins none."""
    if cell.cell_type != "markdown":
        return None
    heading = HEADING.search(cell.source)
    if heading is None or heading[2] in EVERYWHERE:
        return None
    return heading


def joined_widgets(notebooks: list[nbformat.NotebookNode]) -> dict[str, Any]:
    """The states of all widgets (progress bars) of several notebooks, as one notebook's metadata holds them."""
    merged: dict[str, Any] = {}
    for notebook in notebooks:
        widgets = notebook.metadata.get("widgets", {})
        for kind, content in widgets.items():
            earlier = merged.get(kind, {}).get("state", {})
            merged[kind] = {**content, "state": earlier | content["state"]}
    return merged
