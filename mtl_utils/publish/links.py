"""Where the project lies on GitHub: badges, and the address that Colab clones."""

import re

import nbformat

from mtl_utils import files
from mtl_utils.files import UserError
from mtl_utils.publish import translate
from mtl_utils.publish.readme import READMES, between, read, write_page, write_text
from mtl_utils.publish.run import code_cells

NAME = re.compile(r"\w[\w-]*/[\w-][\w.-]*")  # OWNER/NAME; none of the two is . or ..
ADDRESS = re.compile('^REPOSITORY = "(.*)"', re.MULTILINE)  # in every notebook's first cell: what Colab clones
GITHUB = "https://github.com"
COLAB = "https://colab.research.google.com"


def set_address(name: str) -> None:
    """Write where the project lies on GitHub into the notebooks' first cells, and badges into notebooks and READMEs.

    name: OWNER/NAME. Raises UserError when it is something else.
    """
    if not NAME.fullmatch(name):
        raise UserError(f"{name!r} is not an address: give it as OWNER/NAME, as in github.com/OWNER/NAME.")
    address = f"{GITHUB}/{name}"
    paths = sorted(files.NOTEBOOKS.glob("*.ipynb"))
    for path in paths:
        notebook = nbformat.read(path, as_version=4)
        link_notebook(notebook, path.stem, address)
        write_text(path, nbformat.writes(notebook) + "\n")
    translate.build_all()  # the same code in Traditional Chinese
    last = paths[-1].stem  # shows the committed results without any training
    for page in READMES:
        write_page(page, between(read(page), "badge", badge(last, address)))


def link_notebook(notebook: nbformat.NotebookNode, name: str, address: str) -> None:
    """Put the address into the row below the title and into the first code cell."""
    title, _, body = notebook.cells[0].source.split("\n\n", 2)
    notebook.cells[0].source = f"{title}\n\n{navigation(name, address)}\n\n{body}"
    first = code_cells(notebook)[0]
    first.source = ADDRESS.sub(f'REPOSITORY = "{address}"', first.source)


def navigation(name: str, address: str) -> str:
    """The row below a notebook's title: the badge that opens it in Colab, the notebooks before and after it."""
    names = [path.stem for path in sorted(files.NOTEBOOKS.glob("*.ipynb"))]
    index = names.index(name)
    parts = []
    if address:
        parts.append(badge(name, address))
    if index > 0:
        before = names[index - 1]
        parts.append(f"[← {before}]({before}.ipynb)")
    if index + 1 < len(names):
        after = names[index + 1]
        parts.append(f"[{after} →]({after}.ipynb)")
    return " · ".join(parts)


def badge(name: str, address: str) -> str:
    """The badge that opens a notebook in Colab."""
    page = address.replace(GITHUB, f"{COLAB}/github")
    picture = f"{COLAB}/assets/colab-badge.svg"
    return f"[![Open in Colab]({picture})]({page}/blob/main/notebooks/{name}.ipynb)"
