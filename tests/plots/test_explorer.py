"""The players of the notebooks, driven through their controls' values as a user would move them."""

import io
from datetime import datetime, timezone

import matplotlib.pyplot as plt
import pytest
import torch
from helpers import CLASSES, ListSet, objects, photo
from PIL import Image
from torchvision import tv_tensors

from mtl_utils.plots import explorer
from mtl_utils.tasks import METRIC_NAMES, TASKS


@pytest.fixture
def sets():
    mask = tv_tensors.Mask(torch.full((40, 40), 3, dtype=torch.uint8))
    return {
        "seg": ListSet("seg", [(photo(40, 40), {"mask": mask})] * 5),
        "det": ListSet("det", [(photo(40, 40), objects([[0, 0, 20, 20]], [2], size=(40, 40)))] * 2),
        "cls": ListSet("cls", [(photo(40, 40), {"label": torch.tensor(1)})] * 3),
    }


@pytest.fixture
def player(sets, monkeypatch):
    """An explorer of two stages whose models say fixed things; `asked` collects what they were asked."""
    found = {"boxes": torch.tensor([[0.0, 0, 20, 20]] * 2), "labels": torch.tensor([0, 1])}
    found["scores"] = torch.tensor([0.9, 0.4])
    say = {"seg": torch.ones(40, 40).byte(), "det": found, "cls": torch.tensor([0.1, 0.2, 0.7])}
    asked = []

    def predict(model, task, images, size):
        asked.append((model, task, tuple(images[0].shape), size))
        return [say[task]]

    monkeypatch.setattr(explorer, "predict", predict)
    made = explorer.Explorer({"det": "old", "cls": "new"}, sets, {"seg": 32, "det": 64, "cls": 96})
    made.asked = asked
    return made


def texts(player):
    """What is written into the picture that the controls ask for now."""
    return [[axis.get_title(), *(text.get_text() for text in axis.texts)] for axis in player.figure().axes]


def test_the_last_stage_is_asked_for_all_tasks_at_their_sizes(player):
    assert player.stage.value == "cls"
    assert player.asked == [
        ("new", "seg", (3, 40, 40), 32),
        ("new", "det", (3, 40, 40), 64),
        ("new", "cls", (3, 40, 40), 96),
    ]
    truth, said = texts(player)
    assert truth == ["bird"]
    assert said == ["n3 (0.70)", "cat 0.90", "dog 0.40"]


def test_an_earlier_stage_is_asked_for_what_it_had_learned(player):
    player.asked.clear()
    player.stage.value = "det"
    assert [(model, task) for model, task, *_ in player.asked] == [("old", "seg"), ("old", "det")]


def test_controls_change_the_picture(player):
    pictures = [player.picture.value]
    player.threshold.value = 0.5
    assert texts(player)[1] == ["n3 (0.70)", "cat 0.90"]
    pictures.append(player.picture.value)
    player.layers["det"].value = False
    assert texts(player)[1] == ["n3 (0.70)"]
    pictures.append(player.picture.value)
    player.layers["cls"].value = False
    assert texts(player)[1] == [""]
    pictures.append(player.picture.value)
    assert len(set(pictures)) == 4
    assert Image.open(io.BytesIO(pictures[-1])).format == "JPEG"


def test_the_slider_ends_where_the_set_ends(player):
    player.index.value = 4
    player.source.value = "det"
    assert (player.index.max, player.index.value) == (1, 1)
    assert texts(player)[0] == ["1 object", "tv"]


def upload(player, content, name="mine.jpg"):
    about = {"name": name, "type": "image/jpeg", "size": len(content), "content": memoryview(content)}
    player.upload.value = ({**about, "last_modified": datetime.now(timezone.utc)},)


def jpeg(width, height, turned=False):
    file, picture = io.BytesIO(), Image.new("RGB", (width, height))
    exif = Image.Exif()
    exif[0x0112] = 6 if turned else 1  # orientation: the camera was held upright
    picture.save(file, "JPEG", exif=exif)
    return file.getvalue()


def test_your_own_image_uploaded(player):
    player.source.value = explorer.OWN
    assert player.note.value == "Upload a picture, or type the path of one."
    player.asked.clear()
    upload(player, jpeg(64, 32, turned=True))
    assert player.note.value == "" and player.asked[0][2] == (3, 64, 32), "turned as the camera says"
    player.asked.clear()
    upload(player, jpeg(3000, 1500))
    assert player.asked[0][2] == (3, 512, 1024)
    assert len(texts(player)) == 1, "no truth is known"


def test_your_own_image_by_path(player, tmp_path):
    (tmp_path / "mine.jpg").write_bytes(jpeg(64, 32))
    player.source.value = explorer.OWN
    player.asked.clear()
    player.path.value = str(tmp_path / "mine.jpg")
    assert player.note.value == "" and player.asked[0][2] == (3, 32, 64)


def test_what_was_given_last_counts(player, tmp_path):
    (tmp_path / "mine.jpg").write_bytes(jpeg(64, 32))
    player.source.value = explorer.OWN
    player.path.value = str(tmp_path / "mine.jpg")
    upload(player, jpeg(32, 96))
    assert player.asked[-1][2] == (3, 96, 32) and player.path.value == ""
    player.path.value = str(tmp_path / "mine.jpg")
    assert player.asked[-1][2] == (3, 32, 64)


def test_uploads_are_read_in_both_forms_of_ipywidgets():
    new = ({"name": "a.jpg", "content": memoryview(b"old")}, {"name": "b.jpg", "content": memoryview(b"last")})
    old = {"a.jpg": {"metadata": {}, "content": b"old"}, "b.jpg": {"metadata": {}, "content": b"last"}}
    for value in (new, old):
        name, file = explorer.uploaded(value)
        assert (name, file.read()) == ("b.jpg", b"last")


@pytest.mark.parametrize("content", [b"", b"no picture", jpeg(64, 64)[:200]])
def test_what_is_no_picture_is_one_sentence(player, content):
    player.source.value = explorer.OWN
    before = player.picture.value
    upload(player, content, "mine.txt")
    assert player.note.value == "mine.txt cannot be read as a picture: choose a JPEG or PNG file."
    assert player.picture.value == before


def test_the_browser_shows_any_image_of_any_set(sets):
    longer = {task: ListSet(task, dataset.samples * 2, CLASSES) for task, dataset in sets.items()}
    browser = explorer.DataBrowser({(t, "train"): longer[t] for t in TASKS} | {(t, "val"): sets[t] for t in TASKS})
    assert browser.index.max == 9 and texts(browser) == [["bird"]]
    browser.split.value = "val"
    assert browser.index.max == 4
    browser.task.value = "cls"
    browser.index.value = 2
    assert texts(browser) == [["n2"]]
    browser.labels.value = False
    assert texts(browser) == [["3 of 3"]]


def test_the_memory_slider_shows_the_run_of_that_size(monkeypatch):
    asked = []
    monkeypatch.setattr(explorer, "retention_bars", lambda results, name: asked.append(name) or plt.figure())
    metrics = {"cls": {task: {METRIC_NAMES[task]: 0.5} for task in TASKS}}
    done = {"metrics": metrics, "overrides": {}, "settings": {"seed": 0}}
    runs = [done | {"name": name} for name in ("no-replay", "replay")]
    for n in (60, 10):
        runs.append(
            done | {"name": f"memory{n}-balanced", "overrides": {"buffer_size": n, "exemplar_selection": "balanced"}}
        )
    slider = explorer.MemorySlider(runs)
    assert list(slider.size.options) == [0, 10, 60, 240]
    for size in (10, 240):
        slider.size.value = size
    assert asked == ["no-replay", "memory10-balanced", "replay"]
