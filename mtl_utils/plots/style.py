"""One style for every figure.

Colours are those of Okabe and Ito, told apart by colour-blind readers; line styles and markers tell the tasks apart in
grey as well. A notebook shows its figures inline and saves them by the function that `figure_saver` makes.
"""

import io
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.figure import Figure
from PIL import Image

from mtl_utils.files import write_atomically
from mtl_utils.tasks import Task

TASK_COLOURS: dict[Task, str] = {"seg": "#0072B2", "det": "#D55E00", "cls": "#009E73"}
TASK_LINES: dict[Task, str] = {"seg": "-", "det": "--", "cls": "-."}
TASK_MARKS: dict[Task, str] = {"seg": "o", "det": "s", "cls": "^"}
SMALLEST_TEXT = 9  # points: smaller text cannot be read in a notebook
MAX_TRUE_COLOUR = 100_000  # bytes; a larger PNG, which holds photographs, is stored with 256 colours
STYLE = {
    "figure.dpi": 80,
    "savefig.dpi": 80,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
}  # matplotlib's rcParams


def use_style() -> None:
    """Set the project's style for all figures that follow."""
    sns.set_theme(style="ticks", rc=STYLE)


def figure_saver(folder: Path, source: object) -> Callable[[Figure, str], None]:
    """A function show(figure, name): write below a figure what it shows, save it as folder/name.png and display it.

    source: the text, such as Run.caption.
    """
    from IPython import display as notebook  # here, so that everything else works without Jupyter

    use_style()

    def show(figure: Figure, name: str) -> None:
        figure.supxlabel(str(source), x=1, ha="right", fontsize=SMALLEST_TEXT, color="0.4")
        path = folder / f"{name}.png"
        save_png(figure, path)
        notebook.display(notebook.Image(path))

    return show


def save_png(figure: Figure, path: Path) -> None:
    """Save a figure as PNG, with 256 colours where it would be large, and close it; folders are made as needed."""
    file = io.BytesIO()
    figure.savefig(file, format="png", bbox_inches="tight")
    plt.close(figure)
    if file.tell() >= MAX_TRUE_COLOUR:
        file = reduce_colours(file)
    content = file.getvalue()
    write_atomically(path, lambda target: target.write(content))


def reduce_colours(file: io.BytesIO) -> io.BytesIO:
    """The picture of a file as a PNG with 256 colours."""
    picture = Image.open(file).convert("RGB")
    reduced = io.BytesIO()
    picture.quantize(256, kmeans=2).save(reduced, "PNG", optimize=True)
    return reduced
