"""Executing the six notebooks in order and leaving executed copies with an HTML page of each."""

import os
import subprocess
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbconvert import HTMLExporter
from tqdm.auto import tqdm

from mtl_utils.checkpoint import write_atomically
from mtl_utils.settings import PROJECT, UserError

FOLDER = PROJECT / "notebooks"


def execute_all(folder: Path) -> None:
    """Execute every notebook of notebooks/ into `folder`. Raises UserError naming the first cell that fails."""
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    with tqdm(sorted(FOLDER.glob("*.ipynb")), desc="notebooks", unit="notebook") as bar:
        for path in bar:
            bar.set_postfix_str(path.stem)
            write_copies(execute(path), folder, path.stem)


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
