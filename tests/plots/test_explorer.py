"""The interactive figures of the notebooks, driven through their controls' values as a user would move them."""

import io
from datetime import datetime, timezone

import matplotlib.pyplot as plt
import pytest
import torch
from helpers import CLASSES, ListSet, objects, photo
from PIL import Image
from torchvision import tv_tensors

from mtl_utils.evaluation import Prediction, TaskMetrics
from mtl_utils.experiments.results import RunSummary
from mtl_utils.plots import explorer
from mtl_utils.settings import Settings
from mtl_utils.tasks import TASKS


@pytest.fixture
def sets():
    mask = tv_tensors.Mask(torch.full((40, 40), 3, dtype=torch.uint8))
    return {
        "seg": ListSet("seg", [(photo(40, 40), {"mask": mask})] * 5),
        "det": ListSet("det", [(photo(40, 40), objects([[0, 0, 20, 20]], [2], size=(40, 40)))] * 2),
        "cls": ListSet("cls", [(photo(40, 40), {"label": torch.tensor(1)})] * 3),
    }


@pytest.fixture
def widget(sets, monkeypatch):
    """An explorer of two stages whose models predict fixed things; `calls` collects the arguments of predict."""
    detections = {
        "boxes": torch.tensor([[0.0, 0, 20, 20]] * 2),
        "labels": torch.tensor([0, 1]),
        "scores": torch.tensor([0.9, 0.4]),
    }
    prediction = Prediction(torch.ones(40, 40).byte(), detections, torch.tensor([0.1, 0.2, 0.7]))
    calls = []

    def predict(model, images, size):
        calls.append((model, tuple(images[0].shape), size))
        return [prediction]

    monkeypatch.setattr(explorer, "predict", predict)
    widget = explorer.Explorer({"det": "old", "cls": "new"}, sets, 64)
    widget.calls = calls
    return widget


def texts(widget):
    """What is written into the picture that the controls ask for now, by axes."""
    written = []
    for axis in widget.figure().axes:
        inside = [text.get_text() for text in axis.texts]
        written.append([axis.get_title(), *inside])
    return written


def test_the_last_stage_predicts_all_tasks_in_one_forward(widget):
    assert widget.stage.value == "cls"
    assert widget.calls == [("new", (3, 40, 40), 64)]
    label, prediction = texts(widget)
    assert label == ["bird"]
    assert prediction == ["n3 (0.70)", "cat 0.90", "dog 0.40"]


def test_an_earlier_stage_predicts_what_it_had_learned(widget):
    widget.calls.clear()
    widget.stage.value = "det"
    assert [model for model, *_ in widget.calls] == ["old"]
    assert list(widget.predictions(widget.val_image())) == ["seg", "det"]
    assert texts(widget)[1] == ["", "cat 0.90", "dog 0.40"], "no class yet"


def test_controls_change_the_picture(widget):
    pictures = [widget.picture.value]
    widget.threshold.value = 0.5
    assert texts(widget)[1] == ["n3 (0.70)", "cat 0.90"]
    pictures.append(widget.picture.value)
    widget.layers["det"].value = False
    assert texts(widget)[1] == ["n3 (0.70)"]
    pictures.append(widget.picture.value)
    widget.layers["cls"].value = False
    assert texts(widget)[1] == [""]
    pictures.append(widget.picture.value)
    assert len(set(pictures)) == 4
    assert Image.open(io.BytesIO(pictures[-1])).format == "JPEG"


def test_the_slider_ends_where_the_set_ends(widget):
    widget.index.value = 4
    widget.source.value = "det"
    assert (widget.index.max, widget.index.value) == (1, 1)
    assert texts(widget)[0] == ["1 object", "tv"]


def upload(widget, content, name="mine.jpg"):
    uploaded = {
        "name": name,
        "type": "image/jpeg",
        "size": len(content),
        "content": memoryview(content),
        "last_modified": datetime.now(timezone.utc),
    }
    widget.upload.value = (uploaded,)


def jpeg(width, height, turned=False):
    picture = Image.new("RGB", (width, height))
    exif = Image.Exif()
    exif[0x0112] = 6 if turned else 1  # orientation: the camera was held upright
    file = io.BytesIO()
    picture.save(file, "JPEG", exif=exif)
    return file.getvalue()


def test_your_own_image_uploaded(widget):
    widget.source.value = explorer.OWN
    assert widget.note.value == "Upload a picture, or type the path of one."
    widget.calls.clear()
    upload(widget, jpeg(64, 32, turned=True))
    assert widget.note.value == "" and widget.calls[0][1] == (3, 64, 32), "turned as the camera says"
    widget.calls.clear()
    upload(widget, jpeg(3000, 1500))
    assert widget.calls[0][1] == (3, 512, 1024)
    assert len(texts(widget)) == 1, "an own image has no label"


def test_your_own_image_by_path(widget, tmp_path):
    (tmp_path / "mine.jpg").write_bytes(jpeg(64, 32))
    widget.source.value = explorer.OWN
    widget.calls.clear()
    widget.path.value = str(tmp_path / "mine.jpg")
    assert widget.note.value == "" and widget.calls[0][1] == (3, 32, 64)


def test_what_was_given_last_counts(widget, tmp_path):
    (tmp_path / "mine.jpg").write_bytes(jpeg(64, 32))
    widget.source.value = explorer.OWN
    widget.path.value = str(tmp_path / "mine.jpg")
    upload(widget, jpeg(32, 96))
    assert widget.calls[-1][1] == (3, 96, 32) and widget.path.value == ""
    widget.path.value = str(tmp_path / "mine.jpg")
    assert widget.calls[-1][1] == (3, 32, 64)


def test_uploads_are_read_in_both_forms_of_ipywidgets():
    new = ({"name": "a.jpg", "content": memoryview(b"old")}, {"name": "b.jpg", "content": memoryview(b"last")})
    old = {"a.jpg": {"metadata": {}, "content": b"old"}, "b.jpg": {"metadata": {}, "content": b"last"}}
    for value in (new, old):
        name, file = explorer.uploaded(value)
        assert (name, file.read()) == ("b.jpg", b"last")


@pytest.mark.parametrize("content", [b"", b"no picture", jpeg(64, 64)[:200]])
def test_what_is_no_picture_is_one_sentence(widget, content):
    widget.source.value = explorer.OWN
    before = widget.picture.value
    upload(widget, content, "mine.txt")
    assert widget.note.value == "mine.txt cannot be read as a picture: choose a JPEG or PNG file."
    assert widget.picture.value == before


def test_the_browser_shows_any_image_of_any_set(sets):
    datasets = {(task, "train"): ListSet(task, sets[task].samples * 2, CLASSES) for task in TASKS}
    datasets |= {(task, "val"): sets[task] for task in TASKS}
    browser = explorer.DataBrowser(datasets)
    assert browser.index.max == 9 and texts(browser) == [["bird"]]
    browser.split.value = "val"
    assert browser.index.max == 4
    browser.task.value = "cls"
    browser.index.value = 2
    assert texts(browser) == [["n2"]]
    browser.labels.value = False
    assert texts(browser) == [["3 of 3"]]


def summary(name, **overrides):
    """A run of a study in which every task ends at a half."""
    metrics = {}
    for task in TASKS:
        metrics[task] = TaskMetrics(task, value=0.5, floor=0.0, per_class={}, images=0)
    return RunSummary(
        name=name,
        overrides=overrides,
        settings=Settings(**overrides),
        data_fingerprints={},
        initial_weights="",
        source="",
        device="cpu",
        provenance={},
        minutes={},
        stored_bytes=0,
        before={},
        metrics={"cls": metrics},
        val_curve={},
        bootstrap_draws={},
    )


def test_the_buffer_size_slider_shows_the_run_of_that_size(monkeypatch):
    shown = []
    monkeypatch.setattr(explorer, "retention_bars", lambda results, name: shown.append(name) or plt.figure())
    runs = [summary("no-replay"), summary("replay")]
    for size in (60, 10):
        runs.append(summary(f"memory{size}-balanced", buffer_size=size, exemplar_selection="balanced"))
    slider = explorer.BufferSizeSlider(runs)
    assert list(slider.size.options) == [0, 10, 60, 240]
    for size in (10, 240):
        slider.size.value = size
    assert shown == ["no-replay", "memory10-balanced", "replay"]
