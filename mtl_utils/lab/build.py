"""Both notebooks of the lab from one source: one for students, and the solution."""

import re
from pathlib import Path

import nbformat

from mtl_utils import files
from mtl_utils.publish.notebooks import execute
from mtl_utils.publish.readme import write_text

FOLDER = files.NOTEBOOKS / "lab"
SOURCE = FOLDER / "write_the_cure.txt"
STUDENT = FOLDER / "write_the_cure.ipynb"
SOLUTION = FOLDER / "write_the_cure_solution.ipynb"

CELL = re.compile(r"^# %%(.*)\n", re.MULTILINE)
PART = re.compile(r"^ *# SOLUTION\n.*?^ *# END\n", re.MULTILINE | re.DOTALL)
MARKS = re.compile(r"^ *# (?:SOLUTION|END)\n", re.MULTILINE)
YOURS = "    ...  # your code\n"


def build(with_solution: bool) -> nbformat.NotebookNode:
    """One of the two notebooks, without outputs."""
    pieces = CELL.split(SOURCE.read_text(encoding="utf-8"))[1:]  # what stands before the first cell is a comment
    cells: list[nbformat.NotebookNode] = []
    for kind, text in zip(pieces[::2], pieces[1::2], strict=True):
        cell = make_cell(kind.strip(), text, with_solution)
        cell["id"] = f"lab-{len(cells)}"  # the same in every build
        cells.append(cell)
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return notebook


def make_cell(kind: str, text: str, with_solution: bool) -> nbformat.NotebookNode:
    """A cell of text or of code."""
    if kind == "[markdown]":
        lines = [line.removeprefix("#").removeprefix(" ") for line in text.strip().splitlines()]
        return nbformat.v4.new_markdown_cell("\n".join(lines))
    code = MARKS.sub("", text) if with_solution else PART.sub(YOURS, text)
    tags = ["nbval-ignore-output"] if kind == "ignore-output" else []
    return nbformat.v4.new_code_cell(code.strip(), metadata={"tags": tags})


def build_all() -> list[Path]:
    """Write both notebooks and execute them; returns their paths. Raises UserError where a cell fails."""
    written = []
    for path, with_solution in ((STUDENT, False), (SOLUTION, True)):
        write_notebook(build(with_solution), path)
        notebook = execute(path)
        write_notebook(notebook, path)
        written.append(path)
    return written


def write_notebook(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Write a notebook to a file."""
    text = nbformat.writes(notebook)
    write_text(path, text + "\n")
