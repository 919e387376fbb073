"""Widgets for the notebooks: a browser of the data, predictions of every stage's model, forgetting by buffer size.

The picture of a widget is kept as JPEG bytes, so that it is stored with the notebook and shown where no kernel runs.
"""

import io
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from PIL import Image, ImageOps
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as TF

from mtl_utils.data import MiniSet
from mtl_utils.evaluation import SHOWN, predict
from mtl_utils.experiments.results import RunSummary, buffer_sizes, same_seeds
from mtl_utils.files import UserError
from mtl_utils.pictures import BROKEN
from mtl_utils.plots.pictures import Models, Prediction, draw_image, draw_predictions, draw_sample
from mtl_utils.plots.studies import retention_bars
from mtl_utils.tasks import TASK_NAMES, TASKS, Task, learned_by, stage_number

OWN = "own"  # in the place of a task: the image that the user gave
LARGEST = 1024  # pixels of the longer side of a user's image: the model reads fewer anyway
WHOLE_DESCRIPTION = {"description_width": "initial"}  # a widget's style: its description is not cut off


class InteractiveFigure(widgets.VBox):
    """Rows of controls above a picture, which is drawn again whenever one of them changes; a note stands below it."""

    def __init__(self, *rows: list[widgets.Widget]):
        self.picture = widgets.Image(format="jpeg")
        self.note = widgets.Label()
        boxes = [widgets.HBox(row) for row in rows]
        super().__init__([*boxes, self.picture, self.note])
        for row in rows:
            for control in row:
                control.observe(lambda _: self.redraw(), "value")
        self.redraw()

    def redraw(self) -> None:
        """Draw what the controls ask for; a user's mistake becomes the note below the picture, which stays."""
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
        """What the controls ask for. Raises UserError when they ask for something that is not there."""
        raise NotImplementedError


class DataBrowser(InteractiveFigure):
    """Any image of any set, with or without its label."""

    def __init__(self, datasets: dict[tuple[Task, str], MiniSet]):
        """datasets: by (task, split)."""
        self.datasets = datasets
        tasks = [(TASK_NAMES[task], task) for task in TASKS]
        splits = list(dict.fromkeys(split for _, split in datasets))  # each once, in their order
        self.task = widgets.Dropdown(options=tasks, description="task")
        self.split = widgets.Dropdown(options=splits, description="split")
        self.index = widgets.IntSlider(description="image", continuous_update=False)
        self.labels = widgets.Checkbox(value=True, description="labels")
        super().__init__([self.task, self.split], [self.index, self.labels])

    def figure(self) -> Figure:
        """The image, and its label where it is wanted."""
        dataset = self.datasets[self.task.value, self.split.value]
        self.index.max = len(dataset) - 1  # lowers the index too where it lies beyond
        index = self.index.value
        figure, axis = plt.subplots(figsize=(5, 4), layout="constrained")
        if self.labels.value:
            draw_sample(axis, dataset, index)
        else:
            image, _ = dataset[index]
            draw_image(axis, image, f"{index + 1} of {len(dataset)}")
        return figure


class Explorer(InteractiveFigure):
    """What the model after a stage predicts for an image of a val set, or for one's own: all three tasks at once."""

    def __init__(self, models: Models, datasets: dict[Task, MiniSet], size: int):
        """models: by the stage that made them; datasets: by task; size: side of the input in pixels."""
        self.models = models
        self.datasets = datasets
        self.input_size = size
        self.stage = choice_of_stage(list(models))
        self.source = choice_of_source(list(datasets))
        self.index = widgets.IntSlider(description="image", continuous_update=False)
        self.threshold = widgets.FloatSlider(
            value=SHOWN,
            min=0.05,
            max=0.95,
            step=0.05,
            description="least score",
            style=WHOLE_DESCRIPTION,
            continuous_update=False,
        )
        self.layers = {}  # which tasks' predictions are shown
        for task in TASKS:
            self.layers[task] = widgets.Checkbox(value=True, description=TASK_NAMES[task], indent=False)
        self.upload = widgets.FileUpload(accept="image/*", description="upload")
        self.path = widgets.Text(placeholder="or the path of a picture", continuous_update=False)
        self.upload.observe(lambda _: self.path.set_trait("value", ""), "value")  # what was given last counts
        super().__init__(
            [self.stage, self.source],
            [self.index, self.threshold],
            list(self.layers.values()),
            [self.upload, self.path],
        )

    def figure(self) -> Figure:
        """The model's predictions, beside the image's label where there is one."""
        if self.source.value == OWN:
            image = self.own_image()
            figure, axis = plt.subplots(figsize=(5, 4), layout="constrained")
        else:
            image = self.val_image()
            figure, (left, axis) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
            draw_sample(left, self.datasets[self.source.value], self.index.value)
        classes = self.datasets[TASKS[0]].classes
        draw_predictions(axis, image, self.predictions(image), classes, self.threshold.value)
        return figure

    def predictions(self, image: tv_tensors.Image) -> dict[Task, Prediction]:
        """The predictions for the tasks that are wanted and that the stage has learned."""
        model = self.models[self.stage.value]
        prediction = predict(model, [image], self.input_size)[0]
        wanted = [task for task in learned_by(self.stage.value) if self.layers[task].value]
        return {task: prediction.of(task) for task in wanted}

    def val_image(self) -> tv_tensors.Image:
        """The chosen image of a set."""
        dataset = self.datasets[self.source.value]
        self.index.max = len(dataset) - 1
        image, _ = dataset[self.index.value]
        return image

    def own_image(self) -> tv_tensors.Image:
        """The picture that was uploaded or named, upright. Raises UserError when there is none that can be read."""
        path = self.path.value.strip()
        if path:
            return read_upright(path, Path(path).expanduser())
        if self.upload.value:
            return read_upright(*uploaded(self.upload.value))
        raise UserError("Upload a picture, or type the path of one.")


def choice_of_stage(stages: list[Task]) -> widgets.Dropdown:
    """A menu of stages, with the last one chosen."""
    options = [(f"{stage_number(stage)} ({TASK_NAMES[stage]})", stage) for stage in stages]
    return widgets.Dropdown(options=options, value=stages[-1], description="after stage", style=WHOLE_DESCRIPTION)


def choice_of_source(tasks: list[Task]) -> widgets.Dropdown:
    """A menu of the sets that an image can come from, and the user's own."""
    options = [(f"val of {TASK_NAMES[task]}", task) for task in tasks]
    options.append(("your own image", OWN))
    return widgets.Dropdown(options=options, description="image from", style=WHOLE_DESCRIPTION)


def read_upright(name: str, file: Path | io.BytesIO) -> tv_tensors.Image:
    """A picture (3, H, W) uint8 as its camera was held, no side longer than LARGEST.

    Raises UserError, which calls it by its name, when it cannot be read.
    """
    try:
        with Image.open(file) as picture:
            upright = ImageOps.exif_transpose(picture).convert("RGB")
    except BROKEN as error:
        raise UserError(f"{name} cannot be read as a picture: choose a JPEG or PNG file.") from error
    upright.thumbnail((LARGEST, LARGEST))
    return tv_tensors.Image(TF.pil_to_tensor(upright))


def uploaded(value: tuple[dict[str, Any], ...] | dict[str, dict[str, Any]]) -> tuple[str, io.BytesIO]:
    """Name and contents of the file that was uploaded last, as ipywidgets 8 gives them, or 7, which Colab has."""
    if isinstance(value, dict):
        name, last = list(value.items())[-1]
    else:
        last = value[-1]
        name = last["name"]
    return name, io.BytesIO(last["content"])


class BufferSizeSlider(InteractiveFigure):
    """How much of each task is kept when the replay buffer stores more or fewer images: read from results, no model."""

    def __init__(self, results: list[RunSummary], selection: str = "balanced"):
        """results: of a study's runs; selection: how the stored images were chosen, as in Settings."""
        self.names = buffer_sizes(results)[selection]  # {stored images a task: name of the run}
        self.results = same_seeds(results, self.names.values())
        self.size = widgets.SelectionSlider(
            options=list(self.names),
            description="stored images a task",
            style=WHOLE_DESCRIPTION,
            continuous_update=False,
        )
        super().__init__([self.size])

    def figure(self) -> Figure:
        """What the run with that buffer size has kept."""
        return retention_bars(self.results, self.names[self.size.value])
