"""Which data root is chosen, and the fingerprint of its contents."""

import shutil
from pathlib import Path

import pytest
from helpers import change_json

from mtl_utils import files
from mtl_utils.files import UserError
from mtl_utils.prepare import root as root_module
from mtl_utils.prepare.root import find_root, fingerprint
from mtl_utils.tasks import FOLDERS

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


def test_fingerprint_is_that_of_the_data_and_not_of_the_place(tiny_root, own_root):
    assert fingerprint(tiny_root) == fingerprint(own_root)
    (own_root / "notes.txt").write_text("beside the sets")
    assert fingerprint(tiny_root) == fingerprint(own_root)


def test_hidden_files_leave_the_fingerprint(tiny_root, own_root):
    """A file manager may write them into any folder at any time."""
    for folder in (own_root / FOLDERS["seg"], own_root / FOLDERS["cls"] / "train"):
        (folder / ".DS_Store").write_text("of a Mac")
        (folder / "Thumbs.db").write_text("of Windows")
        (folder / "__MACOSX").mkdir()
        (folder / "__MACOSX" / "1.jpg").write_text("of a Mac's archive")
    assert fingerprint(own_root) == fingerprint(tiny_root)


def add(root: Path) -> None:
    shutil.copy(root / FOLDERS["seg"] / "val" / "2007_000000.jpg", root / FOLDERS["seg"] / "val" / "new.jpg")


def remove(root: Path) -> None:
    (root / FOLDERS["seg"] / "val" / "2007_000000.jpg").unlink()


def rename(root: Path) -> None:
    (root / FOLDERS["seg"] / "val" / "2007_000000.jpg").rename(root / FOLDERS["seg"] / "val" / "other.jpg")


def annotate(root: Path) -> None:
    change_json(root, lambda contents: contents["annotations"].pop())


@pytest.mark.parametrize("change", [add, remove, rename, annotate])
def test_fingerprint_changes_with_the_data(tiny_root, own_root, change):
    change(own_root)
    assert fingerprint(own_root) != fingerprint(tiny_root)
