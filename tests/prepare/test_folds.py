"""Folds of the training sets: every image once in val, nothing lost, nothing overwritten."""

import json

import pytest

from mtl_utils import layout
from mtl_utils.data import MiniSet, find_classes
from mtl_utils.files import UserError
from mtl_utils.prepare.folds import FOLDS, deal, joined, write_fold
from mtl_utils.prepare.root import Root, cross_fold
from mtl_utils.tasks import SPLITS, TASKS


def test_folds_part_the_training_set(tiny_root, tmp_path):
    for task in ("seg", "det"):
        seen = []
        for fold in range(FOLDS):
            out = tmp_path / f"{task}{fold}"
            write_fold(tiny_root, out, fold)
            train, val = (MiniSet(task, out, split, find_classes(tiny_root)).ids for split in ("train", "val"))
            assert not set(train) & set(val)
            assert sorted(train + val) == sorted(MiniSet(task, tiny_root, "train", find_classes(tiny_root)).ids)
            seen += val
        assert sorted(seen) == sorted(MiniSet(task, tiny_root, "train", find_classes(tiny_root)).ids)


def test_a_fold_keeps_boxes_and_masks(tiny_root, tmp_path):
    write_fold(tiny_root, tmp_path / "fold", 1)
    for task in TASKS[:2]:
        whole = MiniSet(task, tiny_root, "train", find_classes(tiny_root))
        fold = MiniSet(task, tmp_path / "fold", "val", find_classes(tiny_root))
        for key, (_, target) in zip(fold.ids, fold.samples, strict=True):
            original = whole.samples[whole.ids.index(key)][1]
            assert all((value == original[name]).all() for name, value in target.items())


def test_annotations_of_a_fold_are_those_of_its_images(tiny_root, tmp_path):
    write_fold(tiny_root, tmp_path / "fold", 1)
    whole = json.loads(layout.json_path(tiny_root, "train").read_text())
    for split in SPLITS:
        images = [image for i, image in enumerate(whole["images"]) if (i % 4 == 1) == (split == "val")]
        shown = [image["id"] for image in images]
        boxes = [box for box in whole["annotations"] if box["image_id"] in shown]
        expected = json.dumps({**whole, "images": images, "annotations": boxes})
        assert layout.json_path(tmp_path / "fold", split).read_bytes() == expected.encode()


def test_a_missing_photograph_is_one_sentence(own_root, tmp_path):
    next((own_root / "mini_coco_det" / "train").glob("*.jpg")).unlink()
    with pytest.raises(UserError, match=r"mini_coco_det/train/\d{12}\.jpg is missing .*data check"):
        write_fold(own_root, tmp_path / "fold", 0)


def test_dealing_leaves_nothing_out():
    assert deal(list(range(6)), 1) == {"train": [0, 2, 3, 4], "val": [1, 5]}


def test_an_existing_folder_is_not_overwritten(tiny_root, tmp_path):
    with pytest.raises(UserError, match="exists already"):
        write_fold(tiny_root, tmp_path, 0)


def test_in_cross_validation_every_image_is_once_in_val(tiny_root, tmp_path):
    root = Root(tiny_root, "--data-root")
    classes = find_classes(tiny_root)
    for task in TASKS:
        whole = [MiniSet(task, tiny_root, split, classes) for split in SPLITS]
        everything = sorted(name for part in whole for name in names_of(part))
        held_out = []
        folds = range(2) if task == "cls" else range(1 + FOLDS)  # the tiny set has two images of a class
        for fold in folds:
            path = cross_fold(root, tmp_path, fold).path
            train, val = (names_of(MiniSet(task, path, split, find_classes(path))) for split in ("train", "val"))
            assert sorted(train + val) == everything
            held_out += val
        assert sorted(held_out) == everything or task == "cls"


def names_of(part):
    """A name for each sample of a set, from all that it holds."""
    return [
        str((image.sum().item(), [value.sum().item() for value in target.values()])) for image, target in part.samples
    ]


def test_the_folds_of_other_data_lie_elsewhere(own_root, tmp_path):
    root = Root(own_root, "--data-root")
    before = cross_fold(root, tmp_path, 1).path
    assert cross_fold(root, tmp_path, 1).path == before and cross_fold(root, tmp_path, 0) is root
    next((own_root / "mini_voc_seg" / "train").glob("*.jpg")).unlink()
    assert cross_fold(root, tmp_path, 1).path != before


def test_a_fold_that_was_being_written_when_the_process_died_is_written_anew(tiny_root, tmp_path):
    root = Root(tiny_root, "--data-root")
    path = cross_fold(root, tmp_path, 2).path
    files = sorted(file.relative_to(path) for file in path.rglob("*"))
    half = path.with_name("fold2.part")
    path.rename(half)
    next(half.rglob("*.jpg")).unlink()
    assert cross_fold(root, tmp_path, 2).path == path
    assert sorted(file.relative_to(path) for file in path.rglob("*")) == files


def test_two_jsons_as_one_by_hand():
    one = {"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [{"id": 9, "image_id": 1}, {"image_id": 1}]}
    categories = {"categories": [{"id": 1, "name": "cat"}]}
    both = joined(one | categories, one | categories, "val-")
    assert both["images"] == [{"id": 1, "file_name": "1.jpg"}, {"id": "val-1", "file_name": "val-1.jpg"}]
    assert both["annotations"] == [*one["annotations"], {"id": "val-9", "image_id": "val-1"}, {"image_id": "val-1"}]
    with pytest.raises(UserError, match="other categories"):
        joined(one | categories, one | {"categories": [{"id": 2, "name": "cat"}]}, "val-")
