import json
import math
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import change_json, json_file, no_waiting
from PIL import Image
from torchvision import tv_tensors

from conftest import CATEGORIES
from mtl_utils import layout
from mtl_utils.data import BoxRow, MiniSet, classes_of, det_target, find_classes, read_image, read_mask
from mtl_utils.files import UserError
from mtl_utils.pictures import TURNS
from mtl_utils.plots.datasets import class_counts
from mtl_utils.prepare.check import check_root
from mtl_utils.tasks import FOLDERS, IGNORE, IMAGENETTE_NAMES, SPLITS, TASKS, Classes


def load(root: Path, task: str, split: str = "train") -> MiniSet:
    return MiniSet(task, root, split, find_classes(root))


# ---------------------------------------------------------------- the classes that the data gives


def test_classes_are_those_of_the_data(tiny_root):
    classes = find_classes(tiny_root)
    assert classes.det[:3] == ("person", "bicycle", "car") and classes.det_ids == (1, 2, 3, 4, 6, 8, 17, 18, 62, 72)
    assert classes.cls == tuple(sorted(IMAGENETTE_NAMES))
    assert len(classes.seg) == 21 and classes.seg[0] == "background"
    assert find_classes(tiny_root, "val") == classes


def test_any_categories_will_do_and_are_ordered_by_their_ids(own_root):
    def three_others(contents):
        contents["categories"] = [{"id": i, "name": n} for i, n in ((90, "zebra"), (7, "apple"), (42, "kite"))]
        for number, annotation in enumerate(contents["annotations"]):
            annotation["category_id"] = (7, 42, 90)[number % 3]

    change_json(own_root, three_others)
    classes = find_classes(own_root)
    assert (classes.det_ids, classes.det) == ((7, 42, 90), ("apple", "kite", "zebra"))
    labels = torch.cat([target["labels"] for _, target in load(own_root, "det").samples])
    assert labels.tolist() == [number % 3 for number in range(len(labels))]


def test_class_folders_may_have_any_names(own_root):
    folder = own_root / FOLDERS["cls"] / "train"
    shutil.rmtree(folder)
    for name, colour in (("zoo", "red"), ("ant", "green"), ("cup", "blue")):
        (folder / name).mkdir(parents=True)
        Image.new("RGB", (20, 10), colour).save(folder / name / "1.JPEG")
    dataset = load(own_root, "cls")
    assert dataset.classes.cls == ("ant", "cup", "zoo")
    assert dataset.ids == ["ant/1", "cup/1", "zoo/1"]
    assert [int(target["label"]) for _, target in dataset.samples] == [0, 1, 2]


def test_classes_survive_json(tiny_root):
    classes = find_classes(tiny_root)
    assert Classes.from_dict(json.loads(json.dumps(classes.as_dict()))) == classes


def test_names_to_print(tiny_root):
    assert find_classes(tiny_root).names("cls")[0] == "tench"
    assert Classes(("a",), (1,), ("own folder",)).names("cls") == ["own folder"]
    assert find_classes(tiny_root).names("det")[0] == "person"


# ---------------------------------------------------------------- reading the three sets


@pytest.mark.parametrize(("task", "split", "count"), [("seg", "train", 6), ("det", "val", 4), ("cls", "train", 10)])
def test_samples_are_as_documented(tiny_root, task, split, count):
    dataset = load(tiny_root, task, split)
    assert len(dataset) == len(dataset.ids) == len(dataset.paths) == count
    for image, target in dataset:
        assert type(image) is tv_tensors.Image and image.dtype == torch.uint8 and image.shape[0] == 3
        if task == "seg":
            assert type(target["mask"]) is tv_tensors.Mask and target["mask"].dtype == torch.uint8
            assert target["mask"].shape == image.shape[-2:]
        if task == "det":
            boxes = target["boxes"]
            assert type(boxes) is tv_tensors.BoundingBoxes and boxes.canvas_size == tuple(image.shape[-2:])
            assert (boxes.dtype, target["labels"].dtype, target["crowd"].dtype) == (
                torch.float32,
                torch.int64,
                torch.bool,
            )
            assert len(boxes) == len(target["labels"]) == len(target["crowd"])
        if task == "cls":
            assert target["label"].shape == () and target["label"].dtype == torch.int64


def test_masks_are_class_indices_and_not_colours(tiny_root):
    for number, (_, target) in enumerate(load(tiny_root, "seg")):
        assert set(target["mask"].unique().tolist()) == {0, number + 1, number + 11, IGNORE}


def test_masks_belong_to_their_images(tiny_root):
    dataset = load(tiny_root, "seg")
    for path, (_, target) in zip(dataset.paths, dataset.samples, strict=True):
        assert path.suffix == ".jpg", "a mask is no image"
        own = np.array(Image.open(path.with_suffix(".png")))
        assert np.array_equal(target["mask"].numpy(), own)


def test_voc_in_its_own_two_folders_reads_the_same(own_root, tiny_root):
    folder = own_root / FOLDERS["seg"] / "train"
    for name, suffix in (("JPEGImages", ".jpg"), ("SegmentationClass", ".png")):
        (folder / name).mkdir()
        for path in folder.glob(f"*{suffix}"):
            path.rename(folder / name / path.name)
    beside, apart = load(tiny_root, "seg"), load(own_root, "seg")
    assert apart.ids == beside.ids
    for (image, target), (image2, target2) in zip(beside, apart, strict=True):
        assert torch.equal(image, image2) and torch.equal(target["mask"], target2["mask"])


def test_boxes_are_corners_in_pixels_with_class_indices(tiny_root):
    image, target = load(tiny_root, "det")[0]
    assert target["boxes"].tolist() == [[2, 3, 32, 29], [30, 32, 62, 60], [60, 2, 94, 22]]
    assert target["labels"].tolist() == [0, 1, 0]
    assert target["crowd"].tolist() == [False, False, True]
    assert image.shape == (3, 64, 96)


def test_annotations_need_no_crowd_flag(own_root):
    change_json(own_root, lambda contents: [a.pop("iscrowd") for a in contents["annotations"]])
    assert not any(target["crowd"].any() for _, target in load(own_root, "det"))


def test_images_without_annotations_are_kept(own_root):
    change_json(own_root, lambda contents: contents["annotations"].clear())
    dataset = load(own_root, "det")
    assert len(dataset) == 6
    assert all(target["boxes"].shape == (0, 4) for _, target in dataset)


@pytest.mark.parametrize("place", ["train", "images", "images/train", "data/train", "data"])
def test_coco_images_are_found_in_the_usual_places(own_root, place):
    home = own_root / FOLDERS["det"]
    (home / "train").rename(home / "elsewhere")
    (home / place).parent.mkdir(exist_ok=True)
    (home / "elsewhere").rename(home / place)
    change_json(
        own_root, lambda c: [image.update(file_name=f"train2017/{image['file_name']}") for image in c["images"]]
    )
    dataset = load(own_root, "det")
    assert len(dataset) == 6 and all(path.parent == home / place for path in dataset.paths)


def test_ids_are_those_of_coco_and_the_file_names(tiny_root):
    assert load(tiny_root, "det", "val").ids == [100, 101, 102, 103]
    assert load(tiny_root, "seg", "val").ids == [f"2007_00000{i}" for i in range(4)]


def test_classes_are_counted_as_documented(tiny_root):
    assert class_counts(load(tiny_root, "cls")) == dict.fromkeys(range(10), 1)
    assert class_counts(load(tiny_root, "seg")) == dict.fromkeys([*range(1, 7), *range(11, 17)], 1)
    assert sum(class_counts(load(tiny_root, "det")).values()) == 13


def test_classes_of_a_mask_are_without_background_and_border():
    mask = torch.tensor([[0, 255, 7], [7, 20, 0]], dtype=torch.uint8)
    assert classes_of("seg", {"mask": tv_tensors.Mask(mask)}) == [7, 20]


def test_nbytes_counts_images_and_targets(tiny_root):
    seg, det = load(tiny_root, "seg", "val"), load(tiny_root, "det", "val")
    pixels = 96 * 64 + 64 * 96 + 80 * 80 + 72 * 90
    assert seg.nbytes == 4 * pixels
    assert det.nbytes == 3 * pixels + 9 * (4 * 4 + 8 + 1), "nine boxes with label and flag"


# ---------------------------------------------------------------- pictures


def test_grey_pictures_become_three_channels(tmp_path):
    Image.new("L", (30, 20), 90).save(tmp_path / "grey.jpg")
    image = read_image(tmp_path / "grey.jpg")
    assert image.shape == (3, 20, 30) and image.unique().tolist() == [90]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("damage", ["truncated", "empty", "text"])
def test_a_damaged_picture_is_a_user_error_that_names_it(own_root, task, damage):
    path = load(own_root, task).paths[1]
    content = {"truncated": path.read_bytes()[:600], "empty": b"", "text": b"<html>404</html>"}[damage]
    path.write_bytes(content)
    with pytest.raises(UserError, match=path.name):
        load(own_root, task)


def test_a_png_that_is_broken_in_the_middle_is_a_user_error(tmp_path):
    """Pillow raises SyntaxError here, which is no OSError."""
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.randint(0, 256, (200, 200, 3), dtype=np.uint8)).save(path)
    start, end = path.read_bytes().rsplit(b"IDAT", 1)
    path.write_bytes(start + b"\x9a\x1b\x91$" + end)
    with pytest.raises(UserError, match=r"photo\.png"):
        read_image(path)


@pytest.mark.parametrize("damage", ["truncated", "text", "chunk"])
def test_a_damaged_mask_is_a_user_error_that_names_it(own_root, damage):
    path = sorted((own_root / FOLDERS["seg"] / "train").glob("*.png"))[0]
    whole = path.read_bytes()
    spoilt = whole.replace(b"IDAT", b"\x9a\x1b\x91$")
    path.write_bytes({"truncated": whole[: len(whole) // 2], "text": b"no mask", "chunk": spoilt}[damage])
    with pytest.raises(UserError, match=path.name):
        load(own_root, "seg")


@pytest.mark.parametrize("colour", [(129, 0, 0), (38, 38, 38)])
def test_a_mask_in_colours_that_are_not_vocs_is_refused(tmp_path, colour):
    Image.new("RGB", (8, 8), colour).save(tmp_path / "mask.png")
    with pytest.raises(UserError, match=r"mask\.png.*the colour .* in 64 pixel.*palette PNG"):
        read_mask(tmp_path / "mask.png")


@pytest.mark.parametrize("value", [21, 77, 254])
def test_a_mask_with_an_unknown_value_is_refused(tmp_path, value):
    mask = np.zeros((8, 8), np.uint8)
    mask[3, 3] = value
    Image.fromarray(mask).save(tmp_path / "mask.png")
    with pytest.raises(UserError, match=r"mask\.png"):
        read_mask(tmp_path / "mask.png")


def test_a_grey_mask_of_indices_is_read_too(tmp_path):
    Image.fromarray(np.array([[0, 20], [255, 1]], np.uint8)).save(tmp_path / "mask.png")
    assert read_mask(tmp_path / "mask.png").tolist() == [[0, 20], [255, 1]]


def test_a_mask_of_another_size_than_its_image_is_a_user_error(own_root):
    path = sorted((own_root / FOLDERS["seg"] / "train").glob("*.png"))[0]
    Image.new("L", (10, 10)).save(path)
    with pytest.raises(UserError, match=path.name):
        load(own_root, "seg")


def test_an_image_without_mask_is_a_user_error(own_root):
    path = sorted((own_root / FOLDERS["seg"] / "train").glob("*.png"))[0]
    path.unlink()
    with pytest.raises(UserError, match=path.with_suffix(".jpg").name):
        load(own_root, "seg")


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_photograph_that_is_stored_turned_gives_the_same_sample(own_root, orientation):
    whole = load(own_root, "seg")
    path = whole.paths[0]
    undo = {5: 5, 6: 8, 7: 7, 8: 6}.get(orientation, orientation)  # quarter turns undo each other
    stored = Image.open(path).transpose(TURNS[undo])
    exif = Image.Exif()
    exif[0x112] = orientation
    stored.save(path.with_suffix(".webp"), lossless=True, exif=exif.tobytes())
    path.unlink()
    image, target = load(own_root, "seg")[0]
    assert torch.equal(image, whole[0][0]) and torch.equal(target["mask"], whole[0][1]["mask"])


def test_a_mask_drawn_on_the_stored_pixels_leaves_the_photograph_unturned(own_root):
    whole = load(own_root, "seg")
    path = whole.paths[0]
    exif = Image.Exif()
    exif[0x112] = 6
    Image.open(path).save(path.with_suffix(".webp"), lossless=True, exif=exif.tobytes())
    path.unlink()
    image, _ = load(own_root, "seg")[0]
    assert image.shape == (3, 64, 96) and torch.equal(image, whole[0][0])
    assert read_image(path.with_suffix(".webp")).shape == (3, 96, 64)


def test_a_set_without_a_labelled_pixel_is_read(own_root):
    for path in (own_root / FOLDERS["seg"] / "val").glob("*.png"):
        Image.new("L", Image.open(path).size, 255).save(path)
    assert all(target["mask"].unique().tolist() == [255] for _, target in load(own_root, "seg", "val"))


# ---------------------------------------------------------------- other names of sets, splits and classes


def use_own_names(folder: Path) -> None:
    """Name class folders as Imagenette calls the classes, in several spellings."""
    spellings = (str.title, str.upper, lambda name: name.replace(" ", "_"), lambda name: name.replace(" ", "-"))
    for number, path in enumerate(sorted(folder.iterdir())):
        name = IMAGENETTE_NAMES[path.name]
        path.rename(folder / spellings[number % 4](name))


@pytest.mark.parametrize("splits", [("train",), ("val",), SPLITS])
def test_class_folders_may_have_imagenettes_own_names(own_root, tiny_root, splits):
    for split in splits:
        use_own_names(own_root / FOLDERS["cls"] / split)
    assert find_classes(own_root) == find_classes(own_root, "val") == find_classes(tiny_root)
    for split in SPLITS:
        pairs = zip(load(own_root, "cls", split), load(tiny_root, "cls", split), strict=True)
        for (image, target), (image2, target2) in pairs:
            assert torch.equal(image, image2) and target["label"] == target2["label"]


def test_a_model_of_classes_by_their_own_names_reads_wordnet_ids(tiny_root):
    names = ("tench", "parachute", *sorted(IMAGENETTE_NAMES)[1:-1])
    dataset = MiniSet("cls", tiny_root, "val", replace(find_classes(tiny_root), cls=names))
    assert [int(target["label"]) for _, target in dataset] == [0, *range(2, 10), 1]


def test_two_folders_of_one_class_are_refused(own_root):
    folder = own_root / FOLDERS["cls"] / "val"
    shutil.copytree(folder / "n01440764", folder / "Tench")
    with pytest.raises(UserError, match=r"Tench.* mean the same class: put"):
        MiniSet("cls", own_root, "val", find_classes(own_root))


@pytest.mark.parametrize("name", ["imagenette2-160", "imagenette2", "imagenette"])
def test_the_official_names_of_imagenette_will_do(own_root, tiny_root, name):
    (own_root / FOLDERS["cls"]).rename(own_root / name)
    assert find_classes(own_root) == find_classes(tiny_root)
    assert load(own_root, "cls", "val").paths[0].parent.parent.parent.name == name


@pytest.mark.parametrize("name", ["valid", "validation", "val2017"])
@pytest.mark.parametrize("task", ["seg", "cls"])
def test_val_may_have_other_names(own_root, tiny_root, task, name):
    (own_root / FOLDERS[task] / "val").rename(own_root / FOLDERS[task] / name)
    assert load(own_root, task, "val").ids == load(tiny_root, task, "val").ids


def test_photographs_of_other_formats_count(own_root):
    folder = own_root / FOLDERS["cls"] / "train" / "n01440764"
    for name in ("a.webp", "b.BMP", "c.Png", "d.JPG"):
        Image.new("RGB", (8, 8)).save(folder / name)
    (folder / "Thumbs.db").write_text("of Windows")
    (folder.parent / "__MACOSX").mkdir()
    assert load(own_root, "cls").ids[:5] == [f"n01440764/{name}" for name in ("a", "b", "c", "d", "n01440764_0")]
    assert len(find_classes(own_root).cls) == 10


# ---------------------------------------------------------------- boxes


def test_boxes_are_clipped_to_the_image():
    rows = [BoxRow((-10, -5, 30, 20), 0, False), BoxRow((50, 30, 40, 40), 1, True)]
    target = det_target((40, 60), rows)
    assert target["boxes"].tolist() == [[0, 0, 20, 15], [50, 30, 60, 40]]


def test_degenerate_boxes_leave_with_their_label_and_flag():
    rows = [
        BoxRow((5, 5, 0, 10), 0, False),
        BoxRow((5, 5, 10, 10), 1, True),
        BoxRow((5, 5, 10, 0.5), 2, False),
        BoxRow((70, 5, 10, 10), 3, False),
    ]
    target = det_target((40, 60), rows)
    assert target["boxes"].tolist() == [[5, 5, 15, 15]]
    assert target["labels"].tolist() == [1] and target["crowd"].tolist() == [True]


# ---------------------------------------------------------------- data that does not fit


def test_an_unknown_class_folder_is_a_user_error(own_root):
    classes = replace(find_classes(own_root), cls=("n01440764",))
    with pytest.raises(UserError, match="not trained for"):
        MiniSet("cls", own_root, "train", classes)


def test_a_missing_class_folder_keeps_the_labels_of_the_others(own_root):
    classes = find_classes(own_root)
    shutil.rmtree(own_root / FOLDERS["cls"] / "val" / classes.cls[0])
    dataset = MiniSet("cls", own_root, "val", classes)
    assert [int(target["label"]) for _, target in dataset] == list(range(1, 10))


def test_objects_of_an_unknown_category_are_a_user_error(own_root):
    classes = find_classes(own_root)
    change_json(own_root, lambda contents: contents["categories"][0].update(name="kite"), "val")
    with pytest.raises(UserError, match=r"val2017\.json has objects of the class 'kite'"):
        MiniSet("det", own_root, "val", classes)


def test_a_category_without_objects_is_left_out(own_root):
    """As Roboflow writes it: the supercategory of all others, with id 0."""
    expected = targets(load(own_root, "det", "val"))

    def add(contents):
        for category in contents["categories"]:
            category["supercategory"] = "objects"
        contents["categories"].insert(0, {"id": 0, "name": "objects", "supercategory": "none"})

    for split in SPLITS:
        change_json(own_root, add, split)
    assert find_classes(own_root).det_ids == tuple(CATEGORIES)
    assert targets(load(own_root, "det", "val")) == expected


def targets(dataset: MiniSet) -> list:
    """Everything that a detection set teaches, in plain values."""
    return [{name: value.tolist() for name, value in target.items()} for _, target in dataset]


@pytest.mark.parametrize("first", [1, 0, 5])
def test_categories_are_told_by_name_whatever_their_ids(own_root, first):
    """Ids from 1, from 0, and in another order, as FiftyOne, Roboflow and labelme write them."""
    classes = find_classes(own_root)
    expected = targets(MiniSet("det", own_root, "val", classes))

    def renumber(contents):
        contents["categories"].reverse()
        new = {category["id"]: number for number, category in enumerate(contents["categories"], start=first)}
        for category in contents["categories"]:
            category["id"] = new[category["id"]]
            category["name"] = category["name"].capitalize()
        for annotation in contents["annotations"]:
            annotation["category_id"] = new[annotation["category_id"]]

    change_json(own_root, renumber, "val")
    assert targets(MiniSet("det", own_root, "val", classes)) == expected


@pytest.mark.parametrize("new_id", [str, lambda key: f"photo {key}.jpg", lambda key: 2**53 + 2 * key + 1])
def test_image_ids_may_be_text_or_large(own_root, new_id):
    expected = targets(load(own_root, "det"))

    def rename(contents):
        for entry, name in [(i, "id") for i in contents["images"]] + [(a, "image_id") for a in contents["annotations"]]:
            entry[name] = new_id(entry[name])

    change_json(own_root, rename)
    assert targets(load(own_root, "det")) == expected


@pytest.mark.parametrize("written", [lambda key: f" {key}", float])
def test_an_id_is_one_however_it_is_written(own_root, written):
    expected = targets(load(own_root, "det"))
    change_json(own_root, lambda c: [a.update(image_id=written(a["image_id"])) for a in c["annotations"]])
    assert targets(load(own_root, "det")) == expected


@pytest.mark.parametrize(("no", "yes"), [("0", "1"), (None, True), ("False", "true"), (False, 1), (0.0, 1.0)])
def test_a_crowd_flag_may_be_text_null_or_a_truth_value(own_root, no, yes):
    expected = targets(load(own_root, "det"))
    change_json(own_root, lambda c: [a.update(iscrowd=yes if a["iscrowd"] else no) for a in c["annotations"]])
    assert targets(load(own_root, "det")) == expected


def test_an_area_is_that_of_the_box_where_the_json_has_none(own_root):
    areas = iter([None, "12.5", "large", math.nan, -3, [4], 7])
    change_json(own_root, lambda c: [a.update(area=next(areas, 5)) for a in c["annotations"]])
    found = load(own_root, "det").coco.objects
    width, height = found[0].box[2:]
    assert [thing.area for thing in found[:7]] == [
        *[width * height],
        12.5,
        *[t.box[2] * t.box[3] for t in found[2:6]],
        7,
    ]


def test_a_json_may_begin_with_a_byte_order_mark(own_root):
    expected = targets(load(own_root, "det"))
    path = json_file(own_root)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert targets(load(own_root, "det")) == expected


@pytest.mark.parametrize("name", ["train\\{}", "./train/{}", "C:\\data\\{}", "../{}", "images/train2017/{}"])
def test_a_file_name_may_have_any_folders(own_root, name):
    change_json(own_root, lambda c: [i.update(file_name=name.format(i["file_name"])) for i in c["images"]])
    assert len(load(own_root, "det")) == 6


def test_photographs_of_one_name_are_told_apart_by_their_folders(own_root):
    home = own_root / FOLDERS["det"] / "train"
    names = [f"{key:012d}.jpg" for key in (100, 101)]
    before = [load(own_root, "det")[number][0] for number in (0, 1)]
    for number, name in enumerate(names):
        (home / f"camera{number}").mkdir()
        (home / name).rename(home / f"camera{number}" / "1.jpg")
    change_json(own_root, lambda c: [c["images"][n].update(file_name=f"camera{n}/1.jpg") for n in (0, 1)])
    after = [load(own_root, "det")[number][0] for number in (0, 1)]
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    change_json(own_root, lambda c: c["images"][0].update(file_name="1.jpg"))
    with pytest.raises(UserError, match=r"1\.jpg: the image is missing"):
        load(own_root, "det")


def test_a_photograph_of_another_split_is_not_taken(own_root):
    home = own_root / FOLDERS["det"]
    (home / "train" / "000000000100.jpg").unlink()  # val has one of this name
    assert (home / "val" / "000000000100.jpg").exists()
    with pytest.raises(UserError, match="is missing"):
        load(own_root, "det")


def test_names_differ_neither_in_capitals_nor_in_how_accents_are_written(own_root):
    home = own_root / FOLDERS["det"] / "train"
    (home / "000000000100.jpg").rename(home / "cafe\u0301.JPG")
    change_json(own_root, lambda c: c["images"][0].update(file_name="Caf\u00e9.jpg"))
    assert len(load(own_root, "det")) == 6


@pytest.mark.parametrize(
    "name", ["annotations/instances_train2017.json", "annotations/train.json", "train/labels.json"]
)
def test_the_json_may_have_the_names_that_tools_give_it(own_root, name):
    expected = targets(load(own_root, "det"))
    json_file(own_root).rename(own_root / FOLDERS["det"] / name)
    assert targets(load(own_root, "det")) == expected


FAULTY = {  # what must never be trained or scored on, and words of the sentence
    "unknown image": (lambda c: c["annotations"][0].update(image_id=999), "unknown image id 999"),
    "unknown category": (lambda c: c["annotations"][0].update(category_id=5), "unknown category id 5"),
    "parts of 1": (lambda c: [a.update(bbox=[x / 96 for x in a["bbox"]]) for a in c["annotations"]], "parts of the"),
    "corners": (lambda c: [a.update(bbox=corners(a["bbox"])) for a in c["annotations"]], "corners"),
    "twice": (lambda c: c["annotations"].extend(c["annotations"][:]), "stands 2 times"),
    "copied": (lambda c: c["annotations"].extend([a | {"id": None} for a in c["annotations"]]), "repeat another one"),
    "NaN": (lambda c: c["annotations"][0]["bbox"].__setitem__(2, math.nan), "is not finite"),
    "empty": (lambda c: c["annotations"][0]["bbox"].__setitem__(2, 0), "is empty"),
    "outside": (lambda c: c["annotations"][0]["bbox"].__setitem__(0, -20), "reaches outside"),
    "other size": (lambda c: c["images"][0].update(width=95), "its labels are for"),
    "one file": (lambda c: c["images"][1].update(file_name=c["images"][0]["file_name"]), "stands for 2 entries"),
    "crowd 2": (lambda c: c["annotations"][0].update(iscrowd="2"), "must be 0 or 1"),
}


def corners(box: list) -> list:
    left, top, width, height = box
    return [left, top, left + width, top + height]


@pytest.mark.parametrize("kind", FAULTY)
def test_loader_and_check_refuse_what_would_change_a_metric(own_root, kind):
    change, words = FAULTY[kind]
    sound = len(check_root(own_root))
    change_json(own_root, change, "val")
    with pytest.raises(UserError, match=words):
        load(own_root, "det", "val")
    assert len(check_root(own_root)) > sound


def test_boxes_out_of_an_image_are_found_without_its_size_in_the_json(own_root):
    def change(contents):
        for image in contents["images"]:
            del image["width"], image["height"]
        contents["annotations"][0]["bbox"] = [80, 3, 30, 26]

    change_json(own_root, change, "val")
    with pytest.raises(UserError, match=r"reaches outside its image of the size .96, 64."):
        load(own_root, "det", "val")


def test_boxes_in_per_cent_are_refused_where_there_is_nothing_else_to_tell_by(own_root):
    """No areas beside them, and all numbers are sound as pixels."""

    def change(contents):
        boxes = [[3 * n, 2 * n, 20, 30] for n in range(24)]
        image = contents["images"][0]
        image.update(width=640, height=480)
        Image.new("RGB", (640, 480)).save(own_root / FOLDERS["det"] / "val" / image["file_name"])
        contents["annotations"] = [{"image_id": image["id"], "category_id": 1, "bbox": box} for box in boxes]

    change_json(own_root, change, "val")
    with pytest.raises(UserError, match="in per cent of the image"):
        load(own_root, "det", "val")
    change_json(own_root, lambda c: c["annotations"][0].update(bbox=[300, 20, 40, 50]), "val")
    assert len(load(own_root, "det", "val").coco.objects) == 24


def test_boxes_below_a_pixel_are_read_as_coco_has_them(own_root):
    """COCO's own files hold a few boxes without height."""
    change_json(own_root, lambda c: c["annotations"][0].update(bbox=[2, 3, 1.03, 0.0]), "val")
    dataset = load(own_root, "det", "val")
    assert dataset.coco.objects[0].box == (2, 3, 1.03, 0)
    assert len(dataset[0][1]["boxes"]) == 2, "nothing to learn from it"


def test_a_missing_coco_image_is_a_user_error(own_root):
    next((own_root / FOLDERS["det"] / "train").iterdir()).unlink()
    with pytest.raises(UserError, match=r"\.jpg.*missing"):
        load(own_root, "det")


@pytest.mark.parametrize("content", ["", "[1, 2]", '{"images": []}', "null", '{"images": [],'])
def test_a_damaged_json_is_a_user_error(own_root, content):
    json_file(own_root).write_text(content)
    with pytest.raises(UserError, match=r"train2017\.json"):
        find_classes(own_root)


def test_a_missing_json_is_a_user_error(own_root):
    json_file(own_root).unlink()
    with pytest.raises(UserError, match=r"train2017\.json"):
        find_classes(own_root)


@pytest.mark.parametrize("task", ["seg", "cls"])
def test_an_empty_split_is_a_user_error(own_root, task):
    classes = find_classes(own_root)
    folder = own_root / FOLDERS[task] / "val"
    shutil.rmtree(folder)
    folder.mkdir()
    with pytest.raises(UserError, match="no val images"):
        MiniSet(task, own_root, "val", classes)


def test_the_tiny_root_is_what_these_tests_take_it_for(tiny_root):
    for task in TASKS:
        for split in SPLITS:
            assert len(load(tiny_root, task, split)) == (10 if task == "cls" else {"train": 6, "val": 4}[split])


@pytest.mark.parametrize(
    "text", ["", "7", "[1, 2]", '["images", "annotations", "categories"]', '{"images": []}', "[" * 10**5]
)
def test_what_is_no_coco_json_is_named_in_one_sentence(tmp_path, text):
    (tmp_path / "boxes.json").write_text(text)
    with pytest.raises(UserError, match=r"boxes\.json is not a COCO JSON"):
        layout.read_coco(tmp_path / "boxes.json")


# ---------------------------------------------------------------- what would be left out or mistaken without a word


def refused_by_both(root, task, split, match):
    """The loader and `data check` refuse alike."""
    with pytest.raises(UserError, match=match):
        load(root, task, split)
    assert any(re.search(match, str(fault)) for fault in check_root(root))


def test_an_empty_class_folder_is_refused(own_root):
    """Its images may lie in a folder below it."""
    folder = next((own_root / FOLDERS["cls"] / "val").iterdir())
    (folder / "images").mkdir()
    for path in folder.glob("*.JPEG"):
        path.rename(folder / "images" / path.name)
    refused_by_both(own_root, "cls", "val", f"{folder.name}: the class folder is empty")


def test_two_photographs_of_one_name_do_not_share_a_mask(own_root):
    folder = own_root / FOLDERS["seg"] / "val"
    path = next(folder.glob("*.jpg"))
    shutil.copy(path, path.with_suffix(".jpeg"))
    refused_by_both(own_root, "seg", "val", f"{path.stem}.* has the same name as")


def test_a_mask_without_its_photograph_is_refused(own_root):
    folder = own_root / FOLDERS["seg"] / "val"
    path = next(folder.glob("*.jpg"))
    path.rename(path.with_suffix(".tif"))
    refused_by_both(own_root, "seg", "val", "of this mask is missing")


def test_a_mask_is_found_whatever_the_capitals_and_accents(own_root):
    folder = own_root / FOLDERS["seg"] / "val"
    expected = [target["mask"].tolist() for _, target in load(own_root, "seg", "val")]
    mask = next(folder.glob("*.png"))
    photo = mask.with_suffix(".jpg")
    mask.rename(folder / "0\u00fc.png")  # one character, sorted first as before
    photo.rename(folder / "0U\u0308.JPG")  # two, and capitals
    found = [target["mask"].tolist() for _, target in load(own_root, "seg", "val")]
    assert sorted(found) == sorted(expected)


def test_a_png_mask_whose_checksum_fails_is_refused(own_root):
    """Pillow alone would read other classes from it."""
    path = next((own_root / FOLDERS["seg"] / "val").glob("*.png"))
    data = bytearray(path.read_bytes())
    start = data.index(b"IDAT") + 8
    data[start] ^= 4
    path.write_bytes(data)
    refused_by_both(own_root, "seg", "val", "cannot be decoded")


def test_some_boxes_as_parts_of_the_image_are_refused(own_root):
    """Two exports in one file."""

    def shrink(contents):
        sizes = {image["id"]: (image["width"], image["height"]) for image in contents["images"]}
        for entry in contents["annotations"][:2]:
            width, height = sizes[entry["image_id"]]
            left, top, box_width, box_height = entry["bbox"]
            entry["bbox"] = [left / width, top / height, box_width / width, box_height / height]

    change_json(own_root, shrink, "val")
    refused_by_both(own_root, "det", "val", r"gives 2 of its \d+ boxes as parts of the image")


def test_annotations_that_are_there_twice_are_found_though_one_export_is_rounded(own_root):
    def repeat(contents):
        for entry in list(contents["annotations"]):
            box = [round(value + 0.2) for value in entry["bbox"]]
            contents["annotations"].append(entry | {"id": entry["id"] + 10_000, "bbox": box})

    change_json(own_root, repeat, "val")
    refused_by_both(own_root, "det", "val", "repeat another one")


@pytest.mark.parametrize("name", ["valid", "validation"])
def test_a_split_may_be_asked_for_by_its_folders_name(own_root, name):
    expected = targets(load(own_root, "det", "val"))
    (own_root / FOLDERS["det"] / "val").rename(own_root / FOLDERS["det"] / name)
    annotations = own_root / FOLDERS["det"] / "annotations"
    (annotations / "mini_instances_val2017.json").rename(annotations / f"{name}.json")
    assert targets(load(own_root, "det", name)) == expected


def test_the_photograph_in_the_splits_own_folder_is_meant(own_root):
    expected = targets(load(own_root, "det", "val"))
    home = own_root / FOLDERS["det"]
    shutil.copytree(home / "val", home / "backup")
    assert targets(load(own_root, "det", "val")) == expected


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pipes in folders")
def test_a_pipe_is_no_photograph(own_root):
    os.mkfifo(next((own_root / FOLDERS["cls"] / "val").iterdir()) / "x.jpg")
    with no_waiting():
        refused_by_both(own_root, "cls", "val", "a pipe or a device")
