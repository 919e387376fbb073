"""To play with in a notebook: a browser of the data, what a stage's model says about any image, forgetting by memory.

A player's picture is kept as JPEG bytes, so that it is stored with the notebook and shown where no kernel runs.
"""

import io
from pathlib import Path

import ipywidgets as widgets
import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from PIL import Image, ImageOps
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as TF

from mtl_utils.data import BROKEN, MiniSet
from mtl_utils.evaluation import SHOWN, predict
from mtl_utils.experiments import results as results_module
from mtl_utils.files import UserError
from mtl_utils.plots.pictures import draw_answers, draw_image, draw_truth
from mtl_utils.plots.studies import retention_bars
from mtl_utils.tasks import TASK_NAMES, TASKS

OWN = "own"  # in the place of a task: the image that the user gave
LARGEST = 1024  # pixels of the longer side of a user's image: more is not seen by the model anyway
LOOK = {"style": {"description_width": "initial"}}


class Player(widgets.VBox):
    """Rows of controls above a picture, which is drawn anew whenever one of them changes; notes stand below it."""

    def __init__(self, *rows: list[widgets.Widget]):
        self.picture, self.note = widgets.Image(format="jpeg"), widgets.Label()
        super().__init__([*(widgets.HBox(row) for row in rows), self.picture, self.note])
        for control in (control for row in rows for control in row):
            control.observe(lambda _: self.redraw(), "value")
        self.redraw()

    def redraw(self) -> None:
        """Bring the picture in step with the controls; a user's mistake becomes the note below it."""
        self.note.value = ""
        try:
            figure = self.figure()
        except UserError as error:
            self.note.value = str(error)
            return
        file = io.BytesIO()
        figure.savefig(file, format="jpg", bbox_inches="tight")
        plt.close(figure)
        self.picture.value = file.getvalue()

    def figure(self) -> Figure:
        """What the controls ask for."""
        raise NotImplementedError


class DataBrowser(Player):
    """Any image of any set, with or without what is known about it."""

    def __init__(self, datasets: dict[tuple[str, str], MiniSet]):
        """datasets: by (task, split)."""
        self.datasets = datasets
        splits = list(dict.fromkeys(split for _, split in datasets))
        self.task = widgets.Dropdown(options=[(TASK_NAMES[task], task) for task in TASKS], description="task")
        self.split = widgets.Dropdown(options=splits, description="split")
        self.index = widgets.IntSlider(description="image", continuous_update=False)
        self.labels = widgets.Checkbox(value=True, description="labels")
        super().__init__([self.task, self.split], [self.index, self.labels])

    def figure(self) -> Figure:
        """The image, and its labels where they are wanted."""
        dataset = self.datasets[self.task.value, self.split.value]
        self.index.max = len(dataset) - 1
        image, _ = dataset[self.index.value]
        figure, axis = plt.subplots(figsize=(5, 4), layout="constrained")
        if self.labels.value:
            draw_truth(axis, dataset, self.index.value)
        else:
            draw_image(axis, image.as_subclass(Tensor), f"{self.index.value + 1} of {len(dataset)}")
        return figure


class Explorer(Player):
    """What the model after a stage says about an image of a val set, or about one's own: all three answers at once."""

    def __init__(self, models: dict[str, nn.Module], datasets: dict[str, MiniSet], sizes: dict[str, int]):
        """models: by the stage that made them; datasets: by task; sizes: pixels at which each task is read."""
        self.models, self.datasets, self.sizes = models, datasets, sizes
        stages = [(f"{TASKS.index(stage) + 1} ({TASK_NAMES[stage]})", stage) for stage in models]
        sources = [(f"val of {TASK_NAMES[task]}", task) for task in datasets] + [("your own image", OWN)]
        self.stage = widgets.Dropdown(options=stages, value=stages[-1][1], description="after stage", **LOOK)
        self.source = widgets.Dropdown(options=sources, description="image from", **LOOK)
        self.index = widgets.IntSlider(description="image", continuous_update=False)
        limits = {"min": 0.05, "max": 0.95, "step": 0.05, "continuous_update": False}
        self.threshold = widgets.FloatSlider(value=SHOWN, description="least score", **limits, **LOOK)
        self.layers = {task: widgets.Checkbox(value=True, description=TASK_NAMES[task], indent=False) for task in TASKS}
        self.upload = widgets.FileUpload(accept="image/*", description="upload")
        self.path = widgets.Text(placeholder="or the path of a picture", continuous_update=False)
        self.upload.observe(lambda _: self.path.set_trait("value", ""), "value")  # what was given last counts
        rows = [[self.stage, self.source], [self.index, self.threshold], [*self.layers.values()]]
        super().__init__(*rows, [self.upload, self.path])

    def figure(self) -> Figure:
        """The truth, where there is one, beside the model's answers."""
        own, task = self.source.value == OWN, self.source.value
        image = self.own_image() if own else self.val_image()
        columns = 1 if own else 2
        figure, axes = plt.subplots(1, columns, figsize=(5 * columns, 4), layout="constrained", squeeze=False)
        if not own:
            draw_truth(axes[0, 0], self.datasets[task], self.index.value)
        classes = self.datasets[TASKS[0]].classes
        draw_answers(axes[0, -1], image.as_subclass(Tensor), self.answers(image), classes, self.threshold.value)
        return figure

    def answers(self, image: tv_tensors.Image) -> dict:
        """The answers of the tasks that are wanted and that the stage has learned."""
        learned = TASKS[: TASKS.index(self.stage.value) + 1]
        asked = [task for task in learned if self.layers[task].value]
        model = self.models[self.stage.value]
        return {task: predict(model, task, [image], self.sizes[task])[0] for task in asked}

    def val_image(self) -> tv_tensors.Image:
        """The chosen image of a set."""
        dataset = self.datasets[self.source.value]
        self.index.max = len(dataset) - 1
        return dataset[self.index.value][0]

    def own_image(self) -> tv_tensors.Image:
        """The picture that was uploaded or named, upright. Raises UserError when there is none that can be read."""
        if name := self.path.value.strip():
            file = Path(name).expanduser()
        elif self.upload.value:
            name, file = uploaded(self.upload.value)
        else:
            raise UserError("Upload a picture, or type the path of one.")
        try:
            with Image.open(file) as picture:
                upright = ImageOps.exif_transpose(picture).convert("RGB")
        except BROKEN as error:
            raise UserError(f"{name} cannot be read as a picture: choose a JPEG or PNG file.") from error
        upright.thumbnail((LARGEST, LARGEST))
        return tv_tensors.Image(TF.pil_to_tensor(upright))


class MemorySlider(Player):
    """How much of each task is kept when the replay buffer stores more or fewer images: read from results, no model."""

    def __init__(self, results: list[dict], selection: str = "balanced"):
        self.names = results_module.memory_sizes(results)[selection]
        self.results = results_module.same_seeds(results, self.names.values())
        look = {"continuous_update": False, **LOOK}
        self.size = widgets.SelectionSlider(options=list(self.names), description="stored images a task", **look)
        super().__init__([self.size])

    def figure(self) -> Figure:
        """What the run with that memory has kept."""
        return retention_bars(self.results, self.names[self.size.value])


def uploaded(value: tuple | dict) -> tuple[str, io.BytesIO]:
    """Name and contents of the file that was uploaded last, as ipywidgets 8 gives them, or 7, which Colab has."""
    if isinstance(value, dict):
        name, last = list(value.items())[-1]
        return name, io.BytesIO(last["content"])
    return value[-1]["name"], io.BytesIO(value[-1]["content"])
