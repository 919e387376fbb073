"""What several test files share: a tiny data root, drawn by code in less than a second."""

import json
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that plain `pytest` finds mtl_utils

from helpers import SETTINGS

from mtl_utils import environment, layout
from mtl_utils.files import PROJECT, STOP_SIGNALS
from mtl_utils.prepare.root import Root
from mtl_utils.run import Run
from mtl_utils.stages import run_stage
from mtl_utils.tasks import FOLDERS, IMAGENETTE_NAMES, TASKS, voc_palette

COUNTS = {"train": 6, "val": 4}  # images of segmentation and detection; classification has one for each class
SIZES = ((96, 64), (64, 96), (80, 80), (72, 90), (90, 66), (64, 64))  # width, height
CATEGORIES = {1: "person", 2: "bicycle", 3: "car", 4: "motorcycle", 6: "bus", 8: "truck", 17: "cat", 18: "dog",
              62: "chair", 72: "tv"}  # fmt: skip
PALETTE = np.random.default_rng(0).integers(0, 256, (256, 3), dtype=np.uint8)  # a colour for each class


@pytest.fixture(autouse=True)
def fixed_seed():
    """Every test starts from the same random state, whichever tests run before it."""
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture(autouse=True, scope="session")
def signals_of_a_terminal():
    """The tests' processes obey signals even below `nohup` or a job in the background, which ignore some."""
    for number in STOP_SIGNALS:
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


@pytest.fixture
def one_thread():
    """Gradients that are summed in one order: several threads share even a single image, and then weights differ."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory) -> Path:
    """A data root with all three sets, for reading only: 6 train and 4 val images (classification: 10 and 10)."""
    root = tmp_path_factory.mktemp("tiny")
    for split, count in COUNTS.items():
        draw_seg(root / FOLDERS["seg"] / split, count)
        draw_det(root / FOLDERS["det"], split, count)
        draw_cls(root / FOLDERS["cls"] / split)
    return root


@pytest.fixture(scope="session")
def trained_run(tiny_root, tmp_path_factory) -> Run:
    """A run of all three stages that nothing interrupted, for reading only; its settings are SETTINGS."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(environment.IMAGENET_WEIGHTS, "nothing")
        run = Run(SETTINGS, tmp_path_factory.mktemp("trained") / "run", Root(tiny_root, "--data-root"))
        for task in TASKS:
            run_stage(run, task)
    return run


@pytest.fixture(scope="session")
def real_root() -> Path:
    """The real mini sets, for tests that are marked `real`: those in data/, else those beside the project."""
    for root in (PROJECT / "data", PROJECT.parent / "shared" / "data"):
        if all(layout.has_set(root, task) for task in TASKS):
            return root
    pytest.skip("the real sets are neither in data/ nor beside the project")


@pytest.fixture
def own_root(tiny_root, tmp_path) -> Path:
    """A copy of the tiny root that a test may change."""
    return shutil.copytree(tiny_root, tmp_path / "root")


def canvas(width: int, height: int) -> np.ndarray:
    """A picture of grey noise, (H, W, 3) uint8."""
    noise = np.random.default_rng(width).integers(90, 140, (height, width, 1), dtype=np.uint8)
    return np.repeat(noise, 3, axis=2)


def save_photo(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, "JPEG", quality=95)


def draw_seg(folder: Path, count: int) -> None:
    """Each image shows two classes as rectangles with a border of 255, their masks beside them."""
    for i in range(count):
        width, height = SIZES[i]
        picture, mask = canvas(width, height), np.zeros((height, width), np.uint8)
        for label, (left, top) in ((i + 1, (4, 4)), (i + 11, (34, 30))):
            mask[top : top + 28, left : left + 26] = 255
            mask[top + 2 : top + 26, left + 2 : left + 24] = label
            picture[top : top + 28, left : left + 26] = PALETTE[label]
        save_photo(folder / f"2007_00000{i}.jpg", picture)
        image = Image.fromarray(mask).convert("P")
        image.putdata(mask.flatten().tolist())
        image.putpalette(voc_palette())
        image.save(folder / f"2007_00000{i}.png")


def draw_det(home: Path, split: str, count: int) -> None:
    """Each image shows two objects; a crowd covers a corner of the first. Annotations as in COCO."""
    images, annotations, ids = [], [], list(CATEGORIES)
    for i in range(count):
        width, height = SIZES[i]
        picture, key = canvas(width, height), 100 + i
        boxes = [(2, 3, 30, 26, ids[2 * i % 10], 0), (30, 32, 32, 28, ids[(2 * i + 1) % 10], 0)]
        boxes += [(60, 2, 34, 20, ids[0], 1)] if i == 0 else []
        for left, top, w, h, category, crowd in boxes:
            picture[top : top + h, left : left + w] = PALETTE[category]
            about = {
                "image_id": key,
                "category_id": category,
                "bbox": [left, top, w, h],
                "area": w * h,
                "iscrowd": crowd,
            }
            annotations.append({"id": len(annotations) + 1, **about})
        name = f"{key:012d}.jpg"
        images.append({"id": key, "file_name": name, "width": width, "height": height})
        save_photo(home / split / name, picture)
    categories = [{"id": i, "name": name} for i, name in CATEGORIES.items()]
    path = home / "annotations" / f"mini_instances_{split}2017.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))


def draw_cls(folder: Path) -> None:
    """One image for each of the ten classes, filled with the colour of the class."""
    for i, name in enumerate(IMAGENETTE_NAMES):
        width, height = SIZES[i % len(SIZES)]
        picture = canvas(width, height)
        picture[8:-8, 8:-8] = PALETTE[i]
        save_photo(folder / name / f"{name}_{i}.JPEG", picture)
