"""Which data root is chosen, and the fingerprints of its sets."""

import shutil
from pathlib import Path

import pytest
from helpers import change_json

from mtl_utils import files
from mtl_utils.files import UserError
from mtl_utils.prepare import root as root_module
from mtl_utils.prepare.root import find_root, fingerprint
from mtl_utils.tasks import FOLDERS, TASKS

# ---------------------------------------------------------------- which root


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A project folder without data, and a synthetic set that is only noted down."""
    monkeypatch.delenv("MTL_DATA_ROOT", raising=False)
    monkeypatch.setattr(files, "PROJECT", tmp_path / "project")
    monkeypatch.setattr(root_module, "write_synthetic", lambda root: root.mkdir(parents=True))
    return tmp_path / "project"


def test_the_root_that_is_given_comes_first(project, tiny_root, own_root, monkeypatch):
    monkeypatch.setenv("MTL_DATA_ROOT", str(own_root))
    root = find_root(tiny_root)
    assert (root.path, root.chosen_by) == (tiny_root.resolve(), "--data-root")


def test_then_the_environment_variable(project, own_root, tiny_root, monkeypatch):
    shutil.copytree(tiny_root, project / "data")
    monkeypatch.setenv("MTL_DATA_ROOT", str(own_root))
    root = find_root()
    assert (root.path, root.chosen_by) == (own_root.resolve(), "MTL_DATA_ROOT")


def test_then_the_data_folder(project, tiny_root):
    shutil.copytree(tiny_root, project / "data")
    root = find_root()
    assert (root.path, root.chosen_by) == (project / "data", "data/")
    assert not (project / "data" / "synthetic").exists()


def test_a_data_folder_with_some_of_the_sets_is_never_replaced_by_the_synthetic_ones(project, tiny_root):
    shutil.copytree(tiny_root, project / "data")
    shutil.rmtree(project / "data" / FOLDERS["cls"])
    with pytest.raises(UserError, match="holds only mini_voc_seg, mini_coco_det"):
        find_root()
    assert not (project / "data" / "synthetic").exists(), "nothing is rendered"


def test_then_the_synthetic_sets(project):
    root = find_root()
    assert (root.path, root.chosen_by) == (project / "data" / "synthetic", "synthetic")
    assert root.path.exists(), "made on demand"
    assert "synthetic" in str(root)


def test_the_synthetic_sets_are_called_so_however_they_are_named(project, tiny_root, monkeypatch):
    shutil.copytree(tiny_root, project / "data" / "synthetic")
    assert find_root(project / "data" / "synthetic").chosen_by == "synthetic"
    monkeypatch.setenv("MTL_DATA_ROOT", str(project / "data" / "synthetic"))
    assert find_root().chosen_by == "synthetic"


@pytest.mark.parametrize("how", ["given", "variable"])
def test_a_wrong_root_is_a_user_error_and_never_the_synthetic_sets(project, tmp_path, monkeypatch, how):
    wrong = tmp_path / "wrong"
    if how == "variable":
        monkeypatch.setenv("MTL_DATA_ROOT", str(wrong))
    with pytest.raises(UserError, match=r"wrong.*mini_voc_seg"):
        find_root(wrong if how == "given" else None)
    assert not project.exists()


def test_a_root_with_one_set_will_do_for_that_task_only(project, own_root):
    for task in ("seg", "cls"):
        shutil.rmtree(own_root / FOLDERS[task])
    assert find_root(own_root, ("det",)).path == own_root.resolve()
    with pytest.raises(UserError):
        find_root(own_root, ("seg", "cls"))


# ---------------------------------------------------------------- fingerprint


def fingerprints(root: Path) -> dict[str, str]:
    return {task: fingerprint(root, task) for task in TASKS}


def changed_tasks(one: Path, other: Path) -> list[str]:
    """The tasks in whose fingerprint two roots differ."""
    first, second = fingerprints(one), fingerprints(other)
    return [task for task in TASKS if first[task] != second[task]]


def test_fingerprint_is_that_of_the_data_and_not_of_the_place(tiny_root, own_root):
    assert fingerprints(tiny_root) == fingerprints(own_root)
    assert len(set(fingerprints(tiny_root).values())) == 3
    (own_root / "notes.txt").write_text("beside the sets")
    assert fingerprints(tiny_root) == fingerprints(own_root)


def test_what_nothing_reads_leaves_the_fingerprint(tiny_root, own_root):
    """A file manager may write into any folder at any time, and a user may keep notes there."""
    for folder in (own_root / FOLDERS["seg"], own_root / FOLDERS["cls"] / "train"):
        (folder / ".DS_Store").write_text("of a Mac")
        (folder / "Thumbs.db").write_text("of Windows")
        (folder / "__MACOSX").mkdir()
        (folder / "__MACOSX" / "1.jpg").write_text("of a Mac's archive")
    (own_root / FOLDERS["seg"] / "train" / "notes.txt").write_text("two masks to check")
    (own_root / FOLDERS["det"] / "train" / "unused.jpg").write_bytes(b"in no annotation")
    assert changed_tasks(own_root, tiny_root) == []


def first(root: Path, task: str, pattern: str) -> Path:
    return sorted((root / FOLDERS[task]).glob(pattern))[0]


def add(root: Path) -> None:
    shutil.copy(root / FOLDERS["seg"] / "val" / "2007_000000.jpg", root / FOLDERS["seg"] / "val" / "new.jpg")


def remove(root: Path) -> None:
    (root / FOLDERS["seg"] / "val" / "2007_000000.jpg").unlink()


def rename(root: Path) -> None:
    (root / FOLDERS["seg"] / "val" / "2007_000000.jpg").rename(root / FOLDERS["seg"] / "val" / "other.jpg")


def change_a_byte(root: Path, task: str, pattern: str) -> None:
    """One byte of a file is another, its size is the same."""
    path = first(root, task, pattern)
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def another_mask(root: Path) -> None:
    change_a_byte(root, "seg", "train/*.png")


def another_photograph(root: Path) -> None:
    change_a_byte(root, "det", "**/*.jpg")


def annotate(root: Path) -> None:
    change_json(root, lambda contents: contents["annotations"].pop())


def other_label(root: Path) -> None:
    """A category's id is another of the same length."""
    path = first(root, "det", "annotations/*train*.json")
    text = path.read_text()
    assert '"category_id": 1' in text
    path.write_text(text.replace('"category_id": 1', '"category_id": 2', 1))


def other_class(root: Path) -> None:
    one, two = sorted(path for path in (root / FOLDERS["cls"] / "train").iterdir())[:2]
    photo = sorted(one.iterdir())[0]
    photo.rename(two / photo.name)


CHANGES = [
    ("seg", add),
    ("seg", remove),
    ("seg", rename),
    ("seg", another_mask),
    ("det", another_photograph),
    ("det", annotate),
    ("det", other_label),
    ("cls", other_class),
]


@pytest.mark.parametrize(("task", "change"), CHANGES)
def test_the_fingerprint_of_a_set_changes_with_what_is_read_of_it(tiny_root, own_root, task, change):
    change(own_root)
    assert changed_tasks(own_root, tiny_root) == [task]


def test_a_missing_set_has_a_fingerprint_too(own_root):
    shutil.rmtree(own_root / FOLDERS["cls"])
    assert fingerprint(own_root, "cls") == fingerprint(own_root / "nowhere", "cls")
