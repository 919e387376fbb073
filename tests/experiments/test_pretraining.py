"""Stage 0: pictures from folders and zip files, and what training on them leaves behind."""

import itertools
import json
from dataclasses import asdict
from zipfile import ZipFile

import pytest
import torch
from PIL import Image

from mtl_utils import checkpoint, files, weights
from mtl_utils.experiments import pretraining
from mtl_utils.experiments.pretraining import Pictures, Stage0, pretrain
from mtl_utils.files import UserError
from mtl_utils.model import UnifiedModel

COLOURS = {"n01": (200, 30, 30), "n02": (30, 30, 200), "n03": (30, 200, 30)}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with three classes of eight pictures of one colour."""
    monkeypatch.setenv(weights.VARIABLE, weights.NOTHING)
    monkeypatch.setattr(pretraining, "SIZE", 32)
    monkeypatch.setattr(pretraining, "BATCH", 4)
    for name, colour in COLOURS.items():
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(8):
            Image.new("RGB", (40, 30 + i), colour).save(tmp_path / "pictures" / name / f"{i}.webp", lossless=True)
    return tmp_path / "pictures"


def zipped(folder, path):
    with ZipFile(path, "w") as file:
        for picture in sorted(folder.rglob("*.webp")):
            file.write(picture, picture.relative_to(folder))
        file.writestr("readme.txt", "no picture")
    return path


def test_zip_files_and_folders_give_the_same_pictures(folder, tmp_path):
    plain, packed = Pictures([folder]), Pictures([zipped(folder, tmp_path / "pictures.zip")])
    assert len(plain) == len(packed) == 24 and plain.classes == packed.classes == list(COLOURS)
    for i in (0, 7, 8, 23):
        (a, target), (b, other) = plain[i], packed[i]
        assert torch.equal(a, b) and target["label"] == other["label"] == i // 8
        assert tuple(a[:, 0, 0].tolist()) == COLOURS[plain.classes[i // 8]]


def test_zip_files_in_a_folder_count(folder, tmp_path):
    (tmp_path / "archives").mkdir()
    zipped(folder, tmp_path / "archives" / "a.zip")
    assert len(Pictures([tmp_path / "archives"])) == 24


def test_pictures_are_read_in_place(folder, tmp_path):
    pictures = Pictures([zipped(folder, tmp_path / "a.zip")])
    before = sorted(tmp_path.rglob("*"))
    pictures[3]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("kind", ["nothing", "text", "empty", "broken"])
def test_what_cannot_be_used_is_named(kind, tmp_path):
    path = tmp_path / "images"
    if kind == "text":
        path.write_text("no zip file")
    elif kind != "nothing":
        (path / "n01").mkdir(parents=True)
    if kind == "broken":
        (path / "n01" / "a.jpg").write_bytes(b"no picture")
    with pytest.raises(UserError, match="images"):
        Pictures([path])[0]


def test_every_20th_picture_is_held_out(folder, tmp_path):
    stage = Stage0(Pictures([folder]), "paper", 1, tmp_path / "state.pt")
    assert len(stage.held) == 2 and len(stage.train) == 22
    assert not set(stage.held.indices) & set(stage.train.indices)


@pytest.mark.slow
def test_it_learns_and_leaves_weights_with_a_card(folder, tmp_path, monkeypatch):
    out = tmp_path / "weights" / "stage0_paper.pt"
    card = pretrain([folder], "paper", 6, out, tmp_path / "run")
    losses = [entry["loss"] for entry in checkpoint.load(tmp_path / "run" / "stage0_paper.state.pt")["history"]]
    assert losses[-1] < losses[0]
    assert asdict(card) == json.loads(out.with_suffix(".json").read_text())
    assert (card.pictures, card.classes, card.start) == (22, 3, "nothing")
    content = checkpoint.load(out)
    assert all(v.dtype == torch.float16 for part in ("model", "classifier") for v in content[part].values())
    assert content["classes"] == list(COLOURS) and content["classifier"]["weight"].shape == (3, 256)
    assert card.parameters == sum(v.numel() for v in content["model"].values())
    monkeypatch.setenv(weights.VARIABLE, str(out))
    start = weights.find_starting_weights("paper")
    weights.load_starting_weights(UnifiedModel("paper", 10, 10), start)
    assert start.label.startswith("stage0_paper.pt")


@pytest.mark.slow
def test_a_model_that_starts_from_it_predicts_its_classes(folder, tmp_path, monkeypatch):
    stage = Stage0(Pictures([folder]), "paper", 12, tmp_path / "state.pt")
    while len(stage.history) < 12:
        stage.epoch()
    stage.model.eval()
    images = torch.cat([stage.pictures[i][0][None, :, :24, :24] for i in (0, 8, 16)]).float() / 255
    images = torch.nn.functional.interpolate(images, 32)
    wanted = stage.logits(images)
    checkpoint.save(tmp_path / "stage0.pt", stage.result())
    monkeypatch.setenv(weights.VARIABLE, str(tmp_path / "stage0.pt"))
    model = UnifiedModel("paper", 1, 3)
    weights.load_starting_weights(model, weights.find_starting_weights("paper"), tuple(COLOURS))
    assert torch.allclose(model.eval()(images).classification, wanted, atol=0.1)
    assert wanted.argmax(1).tolist() == [0, 1, 2]


def test_it_does_not_start_from_what_it_left_itself(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "WEIGHTS_FOLDER", tmp_path / "weights")
    monkeypatch.delenv(weights.VARIABLE)
    out = tmp_path / "weights" / "stage0_paper.pt"
    for again in ("first", "second"):
        assert pretrain([folder], "paper", 1, out, tmp_path / again).start == "nothing"
    assert weights.find_starting_weights("paper").label.startswith("stage0_paper.pt ")


@pytest.mark.slow
def test_a_stopped_run_ends_with_the_same_weights(folder, tmp_path):
    straight, stopped = tmp_path / "a.pt", tmp_path / "b.pt"
    pretrain([folder], "paper", 3, straight, tmp_path / "a")
    stage = Stage0(Pictures([folder]), "paper", 3, tmp_path / "b" / "stage0_paper.state.pt")
    stage.epoch()
    stage.save()
    torch.rand(3)  # whatever was drawn in between must not matter
    pretrain([folder], "paper", 3, stopped, tmp_path / "b")
    ends = [checkpoint.load(path)["model"] for path in (straight, stopped)]
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_a_pretrained_trunk_is_frozen_in_the_first_epoch_and_its_early_layers_always(folder, tmp_path, monkeypatch):
    out = tmp_path / "first.pt"
    pretrain([folder], "paper", 1, out, tmp_path / "first")
    monkeypatch.setenv(weights.VARIABLE, str(out))
    stage = Stage0(Pictures([folder]), "paper", 2, tmp_path / "second.pt")
    states = [{k: v.clone() for k, v in stage.model.state_dict().items()}]
    for _ in range(2):
        stage.epoch()
        states.append({k: v.clone() for k, v in stage.model.state_dict().items()})
    pairs = itertools.pairwise(states)
    changed = [{k for k in a if not torch.equal(a[k], b[k])} for a, b in pairs]
    learn = {k for k in states[0] if not k.startswith("head.2.")}  # the last layer is not stage 0's
    early = ("backbone.trunk.downsample.0.", "backbone.trunk.downsample.1.")
    assert changed[0] == {k for k in learn if not k.startswith("backbone.trunk")}
    assert changed[1] == {k for k in learn if not k.startswith(early)}
