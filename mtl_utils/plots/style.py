"""One look for every figure.

Colours are those of Okabe and Ito, told apart by colour-blind readers; line styles and hatches tell the tasks apart in
grey as well. Figures are shown inline and saved under their name by `show`.
"""

import io
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.figure import Figure
from PIL import Image

TASK_COLOURS = {"seg": "#0072B2", "det": "#D55E00", "cls": "#009E73"}
TASK_LINES = {"seg": "-", "det": "--", "cls": "-."}
TASK_MARKS = {"seg": "o", "det": "s", "cls": "^"}
HEAVY = 100_000  # bytes from which a picture is stored with 256 colours: photographs as PNG are large
STYLE = {"figure.dpi": 80, "savefig.dpi": 80, "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}


def use_style() -> None:
    """Set the project's look for all figures that follow."""
    sns.set_theme(style="ticks", rc=STYLE)


def figure_saver(folder: Path, source: object) -> Callable[[Figure, str], None]:
    """A function show(figure, name): say which data a figure rests on, save it as folder/name.png and display it."""
    from IPython.display import Image as Shown
    from IPython.display import display

    use_style()

    def show(figure: Figure, name: str) -> None:
        figure.supxlabel(str(source), x=1, ha="right", fontsize=7, color="0.4")
        folder.mkdir(parents=True, exist_ok=True)
        save_png(figure, folder / f"{name}.png")
        display(Shown(folder / f"{name}.png"))

    return show


def save_png(figure: Figure, path: Path) -> None:
    """Save a figure as PNG, with 256 colours where it would be heavy, and close it."""
    file = io.BytesIO()
    figure.savefig(file, format="png", bbox_inches="tight")
    plt.close(figure)
    if file.tell() < HEAVY:
        path.write_bytes(file.getvalue())
    else:
        Image.open(file).convert("RGB").quantize(256, kmeans=2).save(path, optimize=True)
