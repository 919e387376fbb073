"""What marking leaves out on demand: the result is that of a root without those images."""

import json

import pytest
from helpers import SETTINGS, change_json

from mtl_utils.cli import evaluate as command
from mtl_utils.cli.main import main
from mtl_utils.data import MiniSet, find_classes
from mtl_utils.files import UserError
from mtl_utils.publish.run import take_over
from mtl_utils.run import read_metrics
from mtl_utils.settings import PROFILES
from mtl_utils.tasks import FOLDERS, TASKS


def load(root, task, split="val", skip=True):
    return MiniSet(task, root, split, find_classes(root), skip_broken=skip)


def cut(path):
    path.write_bytes(path.read_bytes()[:100])
    return path


def photos(root, task, split="val"):
    endings = {".jpg", ".jpeg", ".png"} if task == "cls" else {".jpg"}
    found = (root / FOLDERS[task] / split).rglob("*")
    return sorted(path for path in found if path.suffix.lower() in endings)


@pytest.mark.parametrize("task", TASKS)
def test_a_broken_photograph_is_left_out_and_named(task, own_root):
    whole = load(own_root, task, skip=False)
    assert whole.left_out == []
    broken = cut(photos(own_root, task)[0])
    with pytest.raises(UserError, match=broken.name):
        load(own_root, task, skip=False)
    rest = load(own_root, task)
    assert len(rest.left_out) == 1 and broken.name in rest.left_out[0]
    assert len(rest) == len(whole) - 1 and broken not in rest.paths
    assert rest.ids == [key for key, path in zip(whole.ids, whole.paths, strict=True) if path != broken]
    if task == "det":
        assert [photo.key for photo in rest.coco.photos] == rest.ids


def test_two_photographs_of_one_name_are_both_left_out(own_root):
    """Nobody can say to which of them the mask belongs."""
    whole = load(own_root, "seg", skip=False)
    photo = photos(own_root, "seg")[0]
    twin = photo.with_suffix(".jpeg")
    twin.write_bytes(photo.read_bytes())
    rest = load(own_root, "seg")
    assert len(rest) == len(whole) - 1 and not {photo, twin} & set(rest.paths)
    assert len(rest.left_out) == 1


def test_a_photograph_without_a_mask_is_left_out(own_root):
    photo = photos(own_root, "seg")[0]
    photo.with_suffix(".png").unlink()
    with pytest.raises(UserError, match=f"{photo.name} has no mask beside it"):
        load(own_root, "seg", skip=False)
    assert [photo.name in sentence for sentence in load(own_root, "seg").left_out] == [True]


def wrong_box(contents):
    contents["annotations"][0]["bbox"] = [1, 2, -30, 4]


def wrong_flag(contents):
    contents["annotations"][0]["iscrowd"] = 7


def wrong_category(contents):
    contents["annotations"][0]["category_id"] = 999


def wrong_name(contents):
    image = contents["annotations"][0]["image_id"]
    next(entry for entry in contents["images"] if entry["id"] == image)["file_name"] = "nowhere.jpg"


def wrong_size(contents):
    image = contents["annotations"][0]["image_id"]
    entry = next(entry for entry in contents["images"] if entry["id"] == image)
    entry["width"], entry["height"] = 2 * entry["width"], 2 * entry["height"]


@pytest.mark.parametrize("change", [wrong_box, wrong_flag, wrong_category, wrong_name, wrong_size])
def test_an_image_whose_annotations_are_wrong_is_left_out_with_all_of_them(change, own_root):
    contents = []
    change_json(own_root, contents.append, "val")
    image = contents[0]["annotations"][0]["image_id"]
    change_json(own_root, change, "val")
    with pytest.raises(UserError):
        load(own_root, "det", skip=False)
    rest = load(own_root, "det")
    assert len(rest.left_out) == 1 and image not in rest.ids
    assert image not in {found.photo for found in rest.coco.objects}
    assert rest.coco.problems == []


def test_a_fault_of_all_boxes_together_is_not_left_out(own_root):
    def to_parts(contents):
        for annotation in contents["annotations"]:
            annotation["bbox"] = [0.1, 0.1, 0.5, 0.5]

    change_json(own_root, to_parts, "val")
    with pytest.raises(UserError, match=r"as parts of the image.*concerns more than one image to leave out"):
        load(own_root, "det")


def test_a_set_of_which_nothing_is_left_is_refused(own_root):
    for path in photos(own_root, "seg"):
        cut(path)
    with pytest.raises(UserError, match="every image was left out"):
        load(own_root, "seg")


def test_the_marks_are_those_of_a_root_without_the_broken_images(own_root, trained_run, tmp_path, capsys):
    """Images are taken out by hand from one copy, broken in another; numbers and counts agree to the last digit."""
    weights = trained_run.path("cls")
    first = {task: photos(own_root, task)[0] for task in TASKS}

    def mark(*options):
        path = tmp_path / "marks.json"
        status = command.evaluate_command(
            ["--weights", str(weights), "--data_root", str(own_root), "--json", str(path), *options]
        )
        assert status == 0, capsys.readouterr().err
        tasks = json.loads(path.read_text())["tasks"]
        return {task: {key: tasks[task][key] for key in tasks[task] if key != "left_out"} for task in tasks}, tasks

    whole = {path: path.read_bytes() for path in first.values()}
    for path in first.values():
        cut(path)
    broken, tasks = mark("--skip-broken")
    output = capsys.readouterr()
    assert output.out.count("others left out for 1 fault(s)") == 4, "mAP and three metrics"
    assert all(f"{task}: left out: {path}" in output.err for task, path in first.items())
    assert {task: len(tasks[task]["left_out"]) for task in TASKS} == dict.fromkeys(TASKS, 1)

    assert all(whole.values())
    first["seg"].with_suffix(".png").unlink()
    for path in first.values():
        path.unlink()
    first["cls"].parent.rmdir()  # it held one image, and an empty class folder is a fault

    def without_the_first(contents):
        gone = next(entry["id"] for entry in contents["images"] if entry["file_name"] == first["det"].name)
        contents["images"] = [entry for entry in contents["images"] if entry["id"] != gone]
        contents["annotations"] = [entry for entry in contents["annotations"] if entry["image_id"] != gone]

    change_json(own_root, without_the_first, "val")
    by_hand, _ = mark()
    assert broken == by_hand


def test_training_leaves_them_out_and_says_so_in_its_results(own_root, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MTL_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("MTL_IMAGENET_WEIGHTS", "nothing")
    monkeypatch.setenv("MTL_SKIP_BROKEN", "")  # restored after the test, whatever the command sets
    monkeypatch.setitem(PROFILES, "smoke", SETTINGS)
    broken = cut(photos(own_root, "cls", "train")[0])
    words = ["train", "--profile", "smoke", "--data-root", str(own_root), "--name", "mine"]
    assert main(words) == 1 and broken.name in capsys.readouterr().err
    assert main([*words, "--skip-broken"]) == 0
    assert f"cls: left out: {broken}" in capsys.readouterr().out
    metrics = read_metrics(tmp_path / "runs" / "mine" / "metrics.json")
    assert list(metrics.left_out) == ["cls"] and broken.name in metrics.left_out["cls"][0]
    with pytest.raises(UserError, match="without some images"):
        take_over(tmp_path / "runs" / "mine")
