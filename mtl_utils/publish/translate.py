"""The notebooks in Traditional Chinese: the English ones, their text replaced paragraph by paragraph.

The translation of NAME.ipynb lies in notebooks/zh-TW/NAME.po, in gettext's format: a paragraph and its translation.
"""

import re
from pathlib import Path

import nbformat
from babel.messages.catalog import Catalog
from babel.messages.pofile import read_po

from mtl_utils import files
from mtl_utils.files import UserError
from mtl_utils.publish.readme import write_text

FENCE = "```"
BREAK = re.compile(r"(\n{2,})")
LINKS_ALONE = re.compile(r"(\[.*?\]\(\S+\)( · )?)+")  # the row below a title: names of notebooks, a badge


def folder() -> Path:
    """Where the translations lie, and the notebooks that are built from them."""
    return files.NOTEBOOKS / "zh-TW"


def english_notebooks() -> list[Path]:
    """Those that are translated: the six, and both labs of the student."""
    lab = files.NOTEBOOKS / "lab"
    return [*sorted(files.NOTEBOOKS.glob("0*.ipynb")), lab / "why_it_forgets.ipynb", lab / "write_the_cure.ipynb"]


def paragraphs(text: str) -> list[str]:
    """The parts of a text that empty lines separate; code between fences stays in one part."""
    parts: list[str] = []
    inside = False  # a block of code that an empty line has cut
    first, *rest = BREAK.split(text.strip("\n"))  # with the empty lines between the pieces
    for gap, piece in zip(["", *rest[::2]], [first, *rest[1::2]], strict=True):
        if inside:
            parts[-1] += gap + piece
        else:
            parts.append(piece)
        if piece.count(FENCE) % 2:
            inside = not inside
    return parts


def to_translate(text: str) -> list[str]:
    """The paragraphs of a text that need a translation."""
    return [part for part in paragraphs(text) if not LINKS_ALONE.fullmatch(part)]


def table_of(name: str) -> Path:
    """Where the translation of a notebook lies."""
    return folder() / f"{name}.po"


def translated(path: Path) -> Path:
    """Where the translation of an English notebook is built: the same place below folder(), so that links hold."""
    return folder() / path.relative_to(files.NOTEBOOKS)


def read_table(path: Path) -> Catalog:
    """The paragraphs of a notebook and their translations. Raises UserError where there is no such file."""
    if not path.exists():
        raise UserError(f"{path} is missing: write the translation of that notebook.")
    with path.open("rb") as file:
        return read_po(file, locale="zh_TW")


def translate_notebook(notebook: nbformat.NotebookNode, table: Catalog, place: str) -> None:
    """Replace the text of a notebook; code and outputs stay.

    Raises UserError with the first paragraph that has no translation, and `place`, the table's name.
    """
    for cell in notebook.cells:
        if cell.cell_type != "markdown":
            continue
        position = 0  # what stands before it is translated
        for paragraph in to_translate(cell.source):
            message = table.get(paragraph)
            if message is None or not message.string or message.fuzzy:
                raise UserError(f"{place} lacks a translation of {paragraph!r}: add it.")
            text = str(message.string)
            start = cell.source.index(paragraph, position)
            end = start + len(paragraph)
            cell.source = cell.source[:start] + text + cell.source[end:]
            position = start + len(text)


def build_all() -> list[Path]:
    """Write the translated notebooks; returns their paths. Raises UserError where a paragraph has no translation."""
    written = []
    for path in english_notebooks():
        table = table_of(path.stem)
        notebook = nbformat.read(path, as_version=4)
        translate_notebook(notebook, read_table(table), table.name)
        target = translated(path)
        target.parent.mkdir(exist_ok=True)
        write_text(target, nbformat.writes(notebook) + "\n")
        written.append(target)
    return written
