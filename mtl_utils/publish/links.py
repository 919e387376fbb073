"""Where the project lies on GitHub: badges, and the address that Colab clones."""

import re

import nbformat

from mtl_utils import files
from mtl_utils.files import UserError
from mtl_utils.publish.readme import README_WORDS, between, read

ADDRESS = re.compile('^REPOSITORY = "(.*)"', re.MULTILINE)  # in every notebook's first cell: what Colab clones
COLAB = "https://colab.research.google.com"


def set_address(name: str) -> None:
    """Write where the project lies on GitHub (OWNER/NAME) into the notebooks' first cells, and badges everywhere."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError(f"{name!r} is not an address: give it as OWNER/NAME, as in github.com/OWNER/NAME.")
    address, paths = f"https://github.com/{name}", sorted(files.NOTEBOOKS.glob("*.ipynb"))
    for path in paths:
        notebook = nbformat.read(path, as_version=4)
        link_notebook(notebook, path.stem, address)
        path.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
    for readme in README_WORDS:
        text = between(read(readme), "badge", badge(paths[-1].stem, address))
        (files.PROJECT / readme).write_text(text, encoding="utf-8")


def link_notebook(notebook: nbformat.NotebookNode, name: str, address: str) -> None:
    """Bring the row below the title, and the address in the first code cell, in step with where the project lies."""
    title, _, rest = notebook.cells[0].source.split("\n\n", 2)
    notebook.cells[0].source = "\n\n".join([title, navigation(name, address), rest])
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    first.source = ADDRESS.sub(f'REPOSITORY = "{address}"', first.source)


def navigation(name: str, address: str) -> str:
    """The row below a notebook's title: the badge that opens it in Colab, the notebooks before and after it."""
    names = [path.stem for path in sorted(files.NOTEBOOKS.glob("*.ipynb"))]
    i = names.index(name)
    before = [f"[← {other}]({other}.ipynb)" for other in names[:i][-1:]]
    after = [f"[{other} →]({other}.ipynb)" for other in names[i + 1 :][:1]]
    return " · ".join([badge(name, address)] * bool(address) + before + after)


def badge(name: str, address: str) -> str:
    """The badge that opens a notebook in Colab."""
    page = address.replace("https://github.com", f"{COLAB}/github")
    return f"[![Open in Colab]({COLAB}/assets/colab-badge.svg)]({page}/blob/main/notebooks/{name}.ipynb)"
