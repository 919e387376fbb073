"""`data check` finds every fault of a data root, names its file and says how to mend it."""

import io
import json
import math
import random
import shutil
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mtl_utils import layout
from mtl_utils.cli.main import main
from mtl_utils.data import MiniSet, find_classes
from mtl_utils.files import UserError
from mtl_utils.prepare import check
from mtl_utils.tasks import FOLDERS, SPLITS, voc_palette

WIDTH, HEIGHT = 40, 30
TRAIN_JSON = "mini_coco_det/annotations/mini_instances_train2017.json"


def photo(path: Path, seed: int, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path, "JPEG", quality=90)


def mask(path: Path, *values: int, mode: str = "P", size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    pixels = np.zeros((size[1], size[0]), np.uint8)
    pixels[0, : len(values)] = values
    picture = Image.fromarray(pixels)
    if mode == "P":
        picture.putpalette([i // 3 for i in range(768)])
    (picture if mode == "P" else picture.convert(mode)).save(path)


def coco(split: str) -> dict:
    start = 100 * SPLITS.index(split)
    return {
        "images": [
            {"id": start + i, "file_name": f"{start + i:012d}.jpg", "width": WIDTH, "height": HEIGHT} for i in (1, 2)
        ],
        "annotations": [
            {"id": 1, "image_id": start + 1, "category_id": 1, "bbox": [0, 0, 40.5, 30], "area": 9, "iscrowd": 0},
            {"id": 2, "image_id": start + 2, "category_id": 3, "bbox": [5.5, 6, 7, 8], "area": 9, "iscrowd": 1},
        ],
        "categories": [{"id": 1, "name": "person"}, {"id": 3, "name": "car"}],
    }


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    """A root without a fault: two images a task and split (one for each class in classification)."""
    root = tmp_path_factory.mktemp("sound")
    for s, split in enumerate(SPLITS):
        for i in (1, 2):
            photo(root / f"mini_voc_seg/{split}/2007_00{s}00{i}.jpg", 10 * s + i)
            mask(root / f"mini_voc_seg/{split}/2007_00{s}00{i}.png", 0, 20, 255)
            photo(root / f"mini_coco_det/{split}/{100 * s + i:012d}.jpg", 100 + 10 * s + i)
            photo(root / f"imagenette_160/{split}/n0000000{i}/n0000000{i}_{s}.JPEG", 200 + 10 * s + i)
        path = layout.json_path(root, split)
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(coco(split)))
    return root


@pytest.fixture
def root(sound, tmp_path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "root"))


def edit(change: Callable[[dict], object]) -> Callable[[Path], object]:
    """A breakage: apply `change` to the contents of the training JSON."""

    def breakage(root: Path) -> None:
        contents = coco("train")
        change(contents)
        (root / TRAIN_JSON).write_text(json.dumps(contents))

    return breakage


def annotation(**values) -> Callable[[Path], object]:
    return edit(lambda c: c["annotations"][1].update(values))


def truncate(name: str) -> Callable[[Path], object]:
    return lambda root: (root / name).write_bytes((root / name).read_bytes()[:-200])


def copy(source: str, target: str) -> Callable[[Path], object]:
    return lambda root: shutil.copy(root / source, root / target)


def bomb(name: str, side: int = 10**5) -> Callable[[Path], object]:
    """A square picture that claims to have sides of so many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = chunk(b"IHDR", side.to_bytes(4, "big") * 2 + b"\x08\0\0\0\0")
    return lambda root: (root / name).write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b""))


def closed_early(name: str) -> Callable[[Path], object]:
    """A breakage: the second half of a JPEG is missing, but for the marker of its end."""

    def breakage(root: Path) -> None:
        whole = (root / name).read_bytes()
        (root / name).write_bytes(whole[: len(whole) // 2] + whole[-2:])

    return breakage


def holed(name: str) -> Callable[[Path], object]:
    """A breakage: a sector in the middle of a JPEG holds zeros."""

    def breakage(root: Path) -> None:
        whole = (root / name).read_bytes()
        middle = len(whole) // 2
        (root / name).write_bytes(whole[:middle] + bytes(512) + whole[middle + 512 :])

    return breakage


def in_folders(root: Path) -> None:
    """Photographs of detection in two folders; an image that is listed in one lies in the other."""
    home = root / "mini_coco_det/train"
    for folder, name in (("left", "000000000001.jpg"), ("right", "000000000002.jpg")):
        (home / folder).mkdir()
        (home / name).rename(home / folder / name)
    contents = coco("train")
    contents["images"][0]["file_name"] = "right/000000000001.jpg"
    contents["images"][1]["file_name"] = "right/000000000002.jpg"
    (root / TRAIN_JSON).write_text(json.dumps(contents))


def rename_class(root: Path, name: str) -> Path:
    """Name the first class anew in both splits; returns the training split."""
    for split in SPLITS:
        folder = root / "imagenette_160" / split
        (folder / "n00000001").rename(folder / name)
    return root / "imagenette_160" / "train"


SEG, DET, CLS = "mini_voc_seg/train/2007_000001", "mini_coco_det/train/000000000001.jpg", "imagenette_160/train"
FAULTS = [  # name, what breaks the root, path of the one fault, words of its problem, words of its remedy
    ("no set", lambda r: shutil.rmtree(r / "mini_voc_seg"), "mini_voc_seg", "set is missing", "data fetch"),
    ("no split", lambda r: shutil.rmtree(r / "mini_voc_seg/val"), "mini_voc_seg/val", "is missing", "data fetch"),
    ("no class split", lambda r: shutil.rmtree(r / CLS), CLS, "is missing", "data fetch"),
    ("no photographs", lambda r: shutil.rmtree(r / "mini_coco_det/val"), "mini_coco_det/val", "none of the 2", "fetch"),
    ("truncated photo", truncate(f"{SEG}.jpg"), f"{SEG}.jpg", "cannot be decoded", "delete it and get it again"),
    ("truncated COCO", truncate(DET), DET, "cannot be decoded", "delete it and get it again"),
    ("JPEG closed early", closed_early(DET), DET, "ends before its last pixels", "delete it and get it again"),
    ("JPEG with a hole", holed(DET), DET, "overwritten with zeros", "delete it and get it again"),
    ("TIFF", copy(f"{SEG}.jpg", "mini_voc_seg/train/a.TIF"), "mini_voc_seg/train/a.TIF", "not read", "save it as JPEG"),
    (
        "photograph below",
        lambda r: photo(r / "mini_voc_seg/train/more/a.jpg", 7),
        "mini_voc_seg/train/more/a.jpg",
        "not read in this place",
        "save it as JPEG here",
    ),
    ("GIF", copy(DET, f"{CLS}/n00000001/a.gif"), f"{CLS}/n00000001/a.gif", "not read", "class folder itself"),
    ("no class", lambda r: photo(r / f"{CLS}/a.jpg", 7), f"{CLS}/a.jpg", "in no class folder", "move it"),
    (
        "two splits of one meaning",
        lambda r: photo(r / "imagenette_160/valid/n00000001/a.jpg", 7),
        "imagenette_160/valid",
        "is not read, since val/ is read as val",
        "remove or rename",
    ),
    (
        "two classes",
        lambda r: shutil.copy(r / f"{CLS}/n00000001/n00000001_0.JPEG", r / f"{CLS}/n00000002/a.jpg"),
        f"{CLS}/n00000002/a.jpg",
        "the same photograph as n00000001/n00000001_0.JPEG, of another class",
        "whose class is wrong",
    ),
    ("another folder", in_folders, DET, "is missing, but", "data fetch"),
    (
        "garbage photo",
        lambda r: (r / DET).write_bytes(b"no JPEG"),
        DET,
        "decoded (cannot identify image file)",
        "get it again",
    ),
    ("empty photo", lambda r: (r / f"{CLS}/n00000001/a.png").touch(), f"{CLS}/n00000001/a.png", "decoded", "again"),
    ("bomb", bomb(f"{CLS}/n00000001/a.png"), f"{CLS}/n00000001/a.png", "exceeds limit", "get it again"),
    ("missing mask", lambda r: (r / f"{SEG}.png").unlink(), f"{SEG}.jpg", "2007_000001.png is missing", "data fetch"),
    ("missing photo", lambda r: (r / f"{SEG}.jpg").unlink(), f"{SEG}.png", "2007_000001.jpg of this", "remove"),
    ("truncated mask", lambda r: (r / f"{SEG}.png").write_bytes(b"\x89PNG"), f"{SEG}.png", "decoded", "get it again"),
    ("small mask", lambda r: mask(r / f"{SEG}.png", size=(20, 30)), f"{SEG}.png", "20 x 30", "belongs to this image"),
    (
        "colour mask",
        lambda r: mask(r / f"{SEG}.png", 38, 38, mode="RGB"),
        f"{SEG}.png",
        "the colour (38, 38, 38) in 2 pixel(s)",
        "palette PNG",
    ),
    (
        "large photo",
        bomb(f"{CLS}/n00000001/a.png", 10**4),  # of which Pillow only warns
        f"{CLS}/n00000001/a.png",
        "exceeds limit",
        "scale it down",
    ),
    (
        "float photo",
        lambda r: Image.new("F", (8, 8)).save(r / f"{SEG}.jpg", "TIFF"),
        f"{SEG}.jpg",
        "mode F",
        "8 bits",
    ),
    (
        "class twins",
        lambda r: photo(rename_class(r, "n02979186") / "Cassette Player/1.jpg", 7),
        f"{CLS}/n02979186",
        "means the same class as Cassette Player",
        "into one folder",
    ),
    ("21 in a mask", lambda r: mask(r / f"{SEG}.png", 21, 254), f"{SEG}.png", "no class: [21, 254]", "only 0 to 20"),
    ("grey mask", lambda r: mask(r / f"{SEG}.png", 38, mode="L"), f"{SEG}.png", "no class: [38]", "greyscale"),
    ("no JSON", lambda r: (r / TRAIN_JSON).unlink(), TRAIN_JSON, "annotations are missing", "data fetch"),
    ("not JSON", lambda r: (r / TRAIN_JSON).write_text("{"), TRAIN_JSON, "is not JSON", "data fetch"),
    ("binary JSON", lambda r: (r / TRAIN_JSON).write_bytes(b"\xff\xfe\xff"), TRAIN_JSON, "is not JSON", "data fetch"),
    ("deep JSON", lambda r: (r / TRAIN_JSON).write_text("[" * 10**5), TRAIN_JSON, "is not JSON", "data fetch"),
    ("a list", lambda r: (r / TRAIN_JSON).write_text("[1]"), TRAIN_JSON, "is not COCO", "data fetch"),
    ("no categories", edit(lambda c: c.pop("categories")), TRAIN_JSON, "is not COCO", "data fetch"),
    ("not listed", edit(lambda c: c["images"].append(3)), TRAIN_JSON, "is not COCO", "data fetch"),
    ("missing COCO", lambda r: (r / DET).unlink(), DET, "is missing, but mini_instances_train2017", "data fetch"),
    ("wrong size", edit(lambda c: c["images"][0].update(width=41)), DET, "(40, 30), but", "correct width and height"),
    ("image id twice", edit(lambda c: c["images"].append(c["images"][0])), TRAIN_JSON, "id 1 stands 2 times", "remove"),
    ("box id twice", annotation(id=1), TRAIN_JSON, "id 1 stands 2 times among its annotations", "correct or remove"),
    ("no id", edit(lambda c: c["categories"].append({"name": "kite"})), TRAIN_JSON, "categories have no id", "correct"),
    (
        "no name",
        edit(lambda c: c["categories"].append({"id": 7, "name": None})),
        TRAIN_JSON,
        "7 has no name",
        "correct",
    ),
    ("no objects", edit(lambda c: c["annotations"].clear()), TRAIN_JSON, "holds no object", "data fetch"),
    (
        "file twice",
        edit(lambda c: c["images"].append(dict(c["images"][0], id=7))),
        DET,
        "stands for 2 entries",
        "own file",
    ),
    (
        "category twice",
        edit(lambda c: c["categories"].append({"id": 4, "name": "Car"})),
        TRAIN_JSON,
        "'car' stands 2",
        "c",
    ),
    (
        "twice",
        edit(lambda c: c["annotations"].append(dict(c["annotations"][0], id=7))),
        TRAIN_JSON,
        "1 of its 3",
        "remove",
    ),
    (
        "parts of 1",
        edit(lambda c: [a.update(bbox=[0.1, 0.2, 0.3, 0.4]) for a in c["annotations"]]),
        TRAIN_JSON,
        "parts of the image, not in pixels",
        "export the boxes",
    ),
    (
        "percent",
        edit(lambda c: [a.update(bbox=[1, 2, 3, 4], area=99) for a in c["annotations"]]),
        TRAIN_JSON,
        "smaller than the areas",
        "export the boxes",
    ),
    ("inverted corners", annotation(bbox=[30, 20, 39, -9]), TRAIN_JSON, "negative size", "correct or remove"),
    ("unknown image", annotation(image_id=99), TRAIN_JSON, "annotation 2 names the unknown image id 99", "correct"),
    ("unknown class", annotation(category_id=2), TRAIN_JSON, "annotation 2 names the unknown category id 2", "correct"),
    (
        "empty box",
        annotation(bbox=[1, 1, 0, 5]),
        TRAIN_JSON,
        "annotation 2 has the box [1, 1, 0, 5], which is empty",
        "c",
    ),
    ("negative box", annotation(bbox=[9, 9, -3, 5]), TRAIN_JSON, "negative size", "correct or remove"),
    ("NaN", annotation(bbox=[1, math.nan, 3, 5]), TRAIN_JSON, "is not finite", "correct or remove"),
    ("infinite box", annotation(bbox=[1, 1, math.inf, 5]), TRAIN_JSON, "is not finite", "correct or remove"),
    ("huge box", annotation(bbox=[1, 1, 10**400, 5]), TRAIN_JSON, "is not finite", "correct or remove"),
    ("xyxy box", annotation(bbox=[30, 20, 39, 29]), TRAIN_JSON, "fit as corners", "export the boxes"),
    ("box right of it", annotation(bbox=[30, 2, 12, 9]), TRAIN_JSON, "its image of the size (40, 30)", "correct"),
    ("box left of it", annotation(bbox=[-1.5, 2, 9, 9]), TRAIN_JSON, "outside its image", "correct or remove"),
    ("three numbers", annotation(bbox=[1, 2, 3]), TRAIN_JSON, "is not four numbers", "correct or remove"),
    ("words", annotation(bbox=["1", 2, 3, 4]), TRAIN_JSON, "is not four numbers", "correct or remove"),
    ("crowd 2", annotation(iscrowd=2), TRAIN_JSON, "iscrowd 2, which must be 0 or 1", "correct or remove"),
    (
        "leaked photo",
        copy(f"{SEG}.jpg", "mini_voc_seg/val/2007_001001.jpg"),
        "mini_voc_seg/val/2007_001001.jpg",
        "same photograph as mini_voc_seg/train/2007_000001.jpg",
        "remove one of the two",
    ),
    (
        "same COCO id",
        lambda r: photo(r / f"{CLS.replace('train', 'val')}/n00000001/n00000001_0.JPEG", 7),
        "imagenette_160/val/n00000001/n00000001_0.JPEG",
        "same photograph as imagenette_160/train/n00000001/n00000001_0.JPEG",
        "remove one of the two",
    ),
    ("empty class", lambda r: (r / f"{CLS}/n00000001/n00000001_0.JPEG").unlink(), f"{CLS}/n00000001", "empty", "add"),
    ("lone class", lambda r: shutil.rmtree(r / "imagenette_160/val/n00000002"), f"{CLS}/n00000002", "in val", "add"),
]


def test_sound_root_has_no_fault(root, capsys):
    assert check.check_root(root) == []
    assert check.report(root) == 0
    assert "0 fault(s)" in capsys.readouterr().out


@pytest.mark.parametrize(("breakage", "path", "problem", "remedy"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_one_breakage_is_one_fault(root, breakage, path, problem, remedy):
    breakage(root)
    faults = check.check_root(root)
    assert [fault.path for fault in faults] == [path]
    assert problem in faults[0].problem
    assert remedy in faults[0].remedy


CONTENTS_TOGETHER = ["two splits of one meaning", "no class", "GIF", "TIFF", "photograph below", "two classes"]


@pytest.mark.parametrize("name", CONTENTS_TOGETHER)
def test_training_and_marking_refuse_what_data_check_lists(root, name):
    """With --skip-broken they note it, and the rest is read."""
    _, breakage, path, problem, _ = next(fault for fault in FAULTS if fault[0] == name)
    breakage(root)
    task = "seg" if path.startswith("mini_voc") else "cls"
    split = "val" if name == "two splits of one meaning" else "train"
    with pytest.raises(UserError, match=r"a\.jpg|valid|a\.gif|a\.TIF") as caught:
        MiniSet(task, root, split, find_classes(root))
    assert problem in str(caught.value)
    rest = MiniSet(task, root, split, find_classes(root), skip_broken=True)
    assert len(rest) == (1 if name == "two classes" else 2), "of two labels of one photograph neither is scored"
    assert len(rest.left_out) == 1 and problem in rest.left_out[0]


def test_other_capitals_of_a_split_and_utf_16_are_read(root):
    """Windows writes both."""
    for name in FOLDERS.values():
        (root / name / "val").rename(root / name / "VAL")
    path = root / TRAIN_JSON
    path.write_text(path.read_text(), encoding="utf-16")
    assert check.check_root(root) == []


def test_png_photographs_stand_beside_a_folder_of_masks(root):
    home = root / "mini_voc_seg/train"
    (home / "JPEGImages").mkdir()
    (home / "SegmentationClass").mkdir()
    for path in home.glob("*.png"):
        path.rename(home / "SegmentationClass" / path.name)
    for path in home.glob("*.jpg"):
        Image.open(path).save(home / "JPEGImages" / f"{path.stem}.png")
        path.unlink()
    assert check.check_root(root) == []
    assert len(MiniSet("seg", root, "train", find_classes(root))) == 2


def test_a_json_without_sizes_is_said_to_be_unchecked(root, capsys):
    edit(lambda c: [image.pop("width") for image in c["images"]])(root)
    assert check.report(root) == 0
    assert "no size of 2 images, so boxes drawn for another size would not be noticed" in capsys.readouterr().out


def test_all_faults_are_listed(root, capsys):
    (root / f"{SEG}.png").unlink()
    truncate("mini_voc_seg/val/2007_001002.jpg")(root)
    edit(lambda c: [a.update(bbox=[1, 1, 0, 0], iscrowd=7, image_id=5, category_id=[5]) for a in c["annotations"]])(
        root
    )
    (root / DET).unlink()
    shutil.rmtree(root / "imagenette_160/val/n00000002")
    faults = check.check_root(root)
    assert len(faults) == 12  # 2 in segmentation, 1 + 2 x 4 in detection, 1 in classification
    assert check.report(root) == 12
    printed = capsys.readouterr().out
    assert all(f"{fault.path}: {fault.problem} → {fault.remedy}" in printed for fault in faults)
    assert "segmentation    train       2  1 masks" in printed


def test_a_class_of_val_that_train_does_not_have_is_a_fault(root):
    """Marking would refuse it: a model cannot have learned the class."""
    path = root / "mini_coco_det/annotations/mini_instances_val2017.json"
    contents = json.loads(path.read_text())
    contents["categories"][0]["name"] = "kite"
    path.write_text(json.dumps(contents))
    (fault,) = check.check_root(root)
    assert fault.path.endswith("val2017.json")
    assert "objects of the class 'kite', which train does not have" in fault.problem
    assert check.check_root(root, splits=["train"]) == []


def test_another_split_is_checked_alone(root, capsys):
    for folder in ("mini_voc_seg", "mini_coco_det", "imagenette_160"):
        shutil.copytree(root / folder / "val", root / folder / "test")
    annotations = root / "mini_coco_det/annotations"
    shutil.copy(annotations / "mini_instances_val2017.json", annotations / "mini_instances_test2017.json")
    truncate("mini_voc_seg/train/2007_000001.jpg")(root)
    assert main(["data", "check", str(root), "--split", "test"]) == 0, "train's fault is not its own"
    printed = capsys.readouterr().out
    assert "test" in printed and "train" not in printed
    mask = next((root / "mini_voc_seg/test").glob("*.png"))
    mask.unlink()
    assert main(["data", "check", str(root), "--split", "test"]) == 1
    assert f"its mask {mask.name} is missing" in capsys.readouterr().out
    assert main(["data", "check", str(root), "--split", "hidden"]) == 1, "no such split"


def test_faults_can_be_printed_on_any_terminal(root, monkeypatch):
    edit(lambda c: c["images"][0].update(file_name="\ud800ä.jpg"))(root)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    assert check.report(root) == 1


def test_an_empty_or_missing_root_lacks_three_sets(tmp_path):
    assert len(check.check_root(tmp_path)) == 3
    assert check.report(tmp_path / "nowhere") == 3


def test_small_trespasses_of_boxes_are_forgiven(root):
    annotation(bbox=[-1, -0.5, 42, 31.5])(root)
    assert check.check_root(root) == []


def test_equal_names_are_a_fault_only_where_names_are_ids(root):
    for split in SPLITS:
        photo(root / f"imagenette_160/{split}/n00000001/1.jpg", 300 + SPLITS.index(split))
    assert check.check_root(root) == []


def test_hidden_files_and_vocs_own_folders_are_understood(root):
    for split in SPLITS:
        folder = root / "mini_voc_seg" / split
        for suffix, target in ((".jpg", "JPEGImages"), (".png", "SegmentationClass")):
            (folder / target).mkdir()
            for path in folder.glob(f"*{suffix}"):
                path.rename(folder / target / path.name)
        (root / f"imagenette_160/{split}/.DS_Store").touch()
        (root / f"imagenette_160/{split}/n00000001/._n00000001_0.JPEG").touch()
    (root / "mini_coco_det/train").rename(root / "mini_coco_det/images")
    assert check.check_root(root) == []
    assert [(i.name, m.name) for i, m in layout.voc_pairs(root, "val")] == [
        ("2007_001001.jpg", "2007_001001.png"),
        ("2007_001002.jpg", "2007_001002.png"),
    ]
    assert layout.PhotoFinder(root, "train").find("000000000001.jpg").parent.name == "images"


def turned(path: Path, orientation: int) -> None:
    """Save a photograph anew with an EXIF orientation; its pixels stay as they are."""
    exif = Image.Exif()
    exif[0x112] = orientation
    Image.open(path).save(path, quality=90, exif=exif.tobytes())


def vocs_colours(path: Path) -> None:
    mask(path, 0, 20, 255)
    picture = Image.open(path)
    picture.putpalette(voc_palette())
    picture.convert("RGB").save(path)


SOUND = [  # what the loaders read is no fault
    ("photo turned, mask as stored", lambda r: turned(r / f"{SEG}.jpg", 6)),
    ("photo turned, mask as shown", lambda r: (turned(r / f"{SEG}.jpg", 6), mask(r / f"{SEG}.png", size=(30, 40)))),
    ("RGB mask", lambda r: vocs_colours(r / f"{SEG}.png")),
    ("mask of 255", lambda r: Image.new("L", (WIDTH, HEIGHT), 255).save(r / f"{SEG}.png")),
    ("16-bit photo", lambda r: Image.new("I;16", (WIDTH, HEIGHT), 999).save(r / f"{CLS}/n00000001/a.png")),
    ("official name", lambda r: (r / "imagenette_160").rename(r / "imagenette2-160")),
    ("valid", lambda r: [(r / s / "val").rename(r / s / "valid") for s in ("mini_voc_seg", "imagenette_160")]),
    ("junk", lambda r: [(r / CLS / "__MACOSX").mkdir(), (r / "mini_voc_seg/train/Thumbs.db").touch()]),
]


@pytest.mark.parametrize("change", [change for _, change in SOUND], ids=[name for name, _ in SOUND])
def test_what_the_loaders_read_is_no_fault(root, change):
    change(root)
    assert check.check_root(root) == []
    classes = find_classes(root)
    for task in ("seg", "cls"):
        for split in SPLITS:
            assert len(MiniSet(task, root, split, classes)) >= 2


def test_class_names_may_differ_between_the_splits(root):
    rename_class(root, "n01440764")
    (root / "imagenette_160/val/n01440764").rename(root / "imagenette_160/val/tench")
    assert check.check_root(root) == []


def test_layout_never_leaves_the_root_and_names_what_is_missing(root):
    assert layout.PhotoFinder(root, "train").find("../../imagenette_160/train/n00000001/n00000001_0.JPEG") is None
    assert layout.PhotoFinder(root, "train").find("a\0b" + "x" * 9999) is None
    with pytest.raises(UserError, match=r"mini_instances_test2017\.json is missing .* --data-root or another --split"):
        layout.coco_json(root, "test")
    with pytest.raises(UserError, match="data check"):
        layout.class_folders(root, "test")


def test_remedies_name_only_options_that_the_command_has(tmp_path):
    faults = check.check_root(tmp_path)
    assert len(faults) == 3
    for fault in faults:
        assert fault.remedy == "get it with `python -m mtl_utils data fetch ROOT`, or check another folder"


def test_garbage_never_raises(root):
    """Values of every type in every place of the JSON, and random bytes in every kind of picture."""
    rng = random.Random(0)
    garbage = [None, True, -1, 1e400, 10**400, "", "\ud800", "a\0", "x" * 999, [], [[]], [1, 2, 3, 4], {}, {"id": []}]
    places = [(key, field) for key, entries in coco("train").items() for field in entries[0]]
    for key, field in places:
        for value in garbage:
            edit(lambda c, k=key, f=field, v=value: c[k][rng.randrange(2)].update({f: v}))(root)
            assert isinstance(check.check_root(root / "."), list)
    for path in (*root.rglob("*.jpg"), *root.rglob("*.png"), *root.rglob("*.JPEG")):
        data = bytearray(path.read_bytes())
        for _ in range(30):
            data[rng.randrange(2, len(data))] = rng.randrange(256)
        path.write_bytes(data)
    assert check.report(root) > 0


@pytest.mark.real
def test_real_sets_have_no_fault(real_root):
    assert check.check_root(real_root) == []
    assert [(row[2], row[3]) for row in check.summary(real_root)] == [
        (240, "240 masks"),
        (60, "60 masks"),
        (240, "1305 boxes of 10 classes"),
        (60, "477 boxes of 10 classes"),
        (240, "10 classes"),
        (60, "10 classes"),
    ]


def test_photographs_in_both_splits_are_warned_of_before_training(root, capsys):
    """They can be read, so nothing stops; but the metrics would be too high without a word."""
    assert check.first_fault(root, "seg") is None and capsys.readouterr().err == ""
    photo = sorted((root / FOLDERS["seg"] / "val").glob("*.jpg"))[0]
    for ending in (".jpg", ".png"):
        shutil.copy(photo.with_suffix(ending), root / FOLDERS["seg"] / "train" / f"copied{ending}")
    assert check.first_fault(root, "seg") is None
    expected = f"1 photograph(s) of val are in train too, such as {FOLDERS['seg']}/val/{photo.name}"
    assert expected in capsys.readouterr().err
