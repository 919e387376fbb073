"""The synthetic data sets have the formats of the real ones, and their labels agree with their pixels."""

import contextlib
import hashlib
import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from mtl_utils.files import UserError
from mtl_utils.prepare import synthetic
from mtl_utils.tasks import FOLDERS, IMAGENETTE_NAMES, SPLITS, VOC_CLASSES

COUNT = 20


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("synthetic") / "data"
    synthetic.write_synthetic(path, train=COUNT, val=COUNT)
    return path


def digests(folder: Path, suffixes: tuple[str, ...] = ("",)) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name.endswith(suffixes)]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def load_coco(root: Path, split: str) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(root / FOLDERS["det"] / "annotations" / f"mini_instances_{split}2017.json"))


@pytest.mark.parametrize("split", SPLITS)
def test_segmentation_masks(root, split):
    folder = root / FOLDERS["seg"] / split
    seen = set()
    for path in folder.glob("*.jpg"):
        image, mask = Image.open(path), Image.open(path.with_suffix(".png"))
        assert (image.mode, mask.mode) == ("RGB", "P") and image.size == mask.size
        values = np.asarray(mask)
        assert 255 in values and 0 in values
        assert (values == 255).mean() < 0.15, "the ignored border is a thin line"
        seen |= set(np.unique(values).tolist())
    assert len(list(folder.glob("*.jpg"))) == len(list(folder.glob("*.png"))) == COUNT
    assert seen == {*range(len(VOC_CLASSES)), 255}


def test_palette_is_vocs(root):
    palette = Image.open(next((root / FOLDERS["seg"]).rglob("*.png"))).getpalette()
    colours = np.reshape(palette, (256, 3)).tolist()
    assert colours[:4] == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    assert colours[15] == [192, 128, 128] and colours[20] == [0, 64, 128] and colours[255] == [224, 224, 192]


@pytest.mark.parametrize("split", SPLITS)
def test_boxes_enclose_what_is_visible(root, split):
    coco = load_coco(root, split)
    assert len(coco.imgs) == COUNT
    for annotation in coco.anns.values():
        image = coco.imgs[annotation["image_id"]]
        x, y, w, h = annotation["bbox"]
        assert x >= 0 and y >= 0 and w >= 2 and h >= 2
        assert x + w <= image["width"] and y + h <= image["height"]
        rows, columns = np.nonzero(coco.annToMask(annotation))
        assert [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] == [x, y, x + w, y + h]
        assert annotation["area"] == len(rows)


@pytest.mark.parametrize("split", SPLITS)
def test_coco_file(root, split):
    coco = load_coco(root, split)
    for image in coco.imgs.values():
        with Image.open(root / FOLDERS["det"] / split / image["file_name"]) as picture:
            assert picture.size == (image["width"], image["height"]) and picture.mode == "RGB"
        assert 1 <= len(coco.imgToAnns[image["id"]]) <= 7
    labels = Counter(annotation["category_id"] for annotation in coco.anns.values())
    assert set(labels) == set(coco.cats) == {1, 2, 3, 4, 6, 8, 17, 18, 62, 72}
    assert labels.most_common(1)[0][0] == 1
    assert {a["category_id"] for a in coco.anns.values() if a["iscrowd"]} == {1}


def test_ids_are_unique_over_the_splits(root):
    for kind in ("imgs", "anns"):
        train, val = (getattr(load_coco(root, split), kind) for split in SPLITS)
        raw = json.loads(next((root / FOLDERS["det"] / "annotations").glob("*train*")).read_text())
        assert len(train) == len(raw["images" if kind == "imgs" else "annotations"])
        assert not set(train) & set(val)


@pytest.mark.parametrize("split", SPLITS)
def test_classification_is_balanced(root, split):
    files = list((root / FOLDERS["cls"] / split).glob("*/*.JPEG"))
    assert Counter(path.parent.name for path in files) == dict.fromkeys(IMAGENETTE_NAMES, COUNT // 10)
    assert all(112 <= min(Image.open(path).size) <= 128 and Image.open(path).mode == "RGB" for path in files)


@pytest.mark.parametrize("task", synthetic.STYLES)
def test_every_object_is_where_its_mask_says(monkeypatch, task):
    empty = (255.0, 0.0, 255.0)
    monkeypatch.setattr(synthetic, "background", lambda rng, style, size: np.full((*size, 3), empty, np.float32))
    for seed in range(10):
        rng = np.random.default_rng(seed)
        image, seen, placed = synthetic.compose(rng, synthetic.STYLES[task], ["car", "person", "crowd", "tv"])
        assert placed[0] == "car" and set(np.unique(seen)) == set(range(len(placed) + 1))
        drawn = np.abs(image - np.array(empty)).sum(axis=2) > 90
        assert (drawn & (seen > 0)).sum() / (drawn | (seen > 0)).sum() > 0.85


@pytest.mark.parametrize("name", synthetic.DRAWINGS)
def test_every_drawing_fills_its_unit_square(name):
    poses = [(50.0, 50.0, 60.0)]
    _, cover = synthetic.paint(np.random.default_rng(0), synthetic.DRAWINGS[name], (100, 100), poses)
    rows, columns = np.nonzero(cover[..., 0] > 0.5)
    assert max(np.ptp(rows), np.ptp(columns)) > 45 and len(rows) > 400


def test_labels_follow_the_names(tmp_path, monkeypatch):
    seen = np.zeros((30, 40), np.uint8)
    seen[5:15, 5:20], seen[10:25, 25:35] = 1, 2
    scene = np.zeros((30, 40, 3), np.uint8), seen
    monkeypatch.setattr(synthetic, "compose", lambda rng, style, names: (*scene, ["cat", "person"]))
    synthetic.write_seg(tmp_path, 1, 0, np.random.default_rng(0))
    mask = np.asarray(Image.open(tmp_path / "2007_000001.png"))
    assert (mask[seen == 1] == VOC_CLASSES.index("cat")).all()
    assert (mask[seen == 2] == VOC_CLASSES.index("person")).all()
    assert (mask == 255).sum() == 12 * 17 - 10 * 15 + 17 * 12 - 15 * 10, "a border of one pixel around each"
    _, (cat, person) = synthetic.write_det(tmp_path, 1, 0, np.random.default_rng(0))
    assert (cat["category_id"], cat["bbox"], cat["area"]) == (17, [5, 5, 15, 10], 150)
    assert (person["category_id"], person["bbox"], person["area"]) == (1, [25, 10, 10, 15], 150)


def test_no_image_twice(root):
    values = list(digests(root, (".jpg", ".JPEG")).values())
    assert len(values) == len(set(values)) == 6 * COUNT


def test_an_image_depends_on_seed_and_index_alone(root, tmp_path):
    synthetic.write_synthetic(tmp_path / "fewer", train=12, val=3)
    synthetic.write_synthetic(tmp_path / "again", train=12, val=3)
    synthetic.write_synthetic(tmp_path / "other", train=12, val=3, seed=1)
    fewer, whole = digests(tmp_path / "fewer"), digests(root)
    assert fewer == digests(tmp_path / "again")
    assert all(whole[name] == digest for name, digest in fewer.items() if not name.endswith(".json"))
    assert not set(fewer.values()) & set(digests(tmp_path / "other").values())


def test_complete_data_is_left_alone(root):
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    synthetic.write_synthetic(root, train=3, val=3, seed=5)
    assert before == {path: path.stat().st_mtime_ns for path in root.rglob("*")}


def test_other_files_are_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="empty it"):
        synthetic.write_synthetic(tmp_path, train=3, val=3)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_error_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("no space left")

    monkeypatch.setattr(synthetic, "write_cls", fail)
    with pytest.raises(RuntimeError, match="no space left"):
        synthetic.write_synthetic(tmp_path / "data", train=3, val=3)
    assert not list(tmp_path.iterdir())


def test_two_processes_may_draw_at_once(tmp_path, monkeypatch):
    write_all, root = synthetic.write_all, tmp_path / "data"

    def overtaken(draft, *arguments):
        write_all(draft, *arguments)
        write_all(root, *arguments)

    monkeypatch.setattr(synthetic, "write_all", overtaken)
    synthetic.write_synthetic(root, train=2, val=2)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert {path.name for path in root.iterdir()} == set(FOLDERS.values())


def test_files_that_appear_meanwhile_are_not_removed(tmp_path, monkeypatch):
    write_all, root = synthetic.write_all, tmp_path / "data"

    def disturbed(draft, *arguments):
        write_all(draft, *arguments)
        root.mkdir()
        (root / "notes.txt").write_text("mine")

    monkeypatch.setattr(synthetic, "write_all", disturbed)
    with pytest.raises(OSError, match="not empty"):
        synthetic.write_synthetic(root, train=2, val=2)
    assert [path.name for path in root.iterdir()] == ["notes.txt"]


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "data").mkdir()
    synthetic.write_synthetic(tmp_path / "data", train=2, val=2)
    assert {path.name for path in (tmp_path / "data").iterdir()} == set(FOLDERS.values())
