import errno
import json
import os
import stat
from pathlib import Path

import pytest
import torch

from mtl_utils import checkpoint, files
from mtl_utils.files import UserError
from mtl_utils.run import load_model

CONTENT = {"weights": {"a": torch.arange(6.0).reshape(2, 3)}, "epoch": 3, "name": "seg", "scores": [0.5, None]}


def disk_full(*_) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def assert_one_sentence_about(error: pytest.ExceptionInfo, path: Path) -> None:
    text = str(error.value)
    assert str(path) in text
    assert "\n" not in text and text.endswith(".")


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "run" / "model.pt"


def test_what_is_saved_is_loaded(path):
    checkpoint.save(path, CONTENT)
    found = checkpoint.load(path)
    assert torch.equal(found["weights"]["a"], CONTENT["weights"]["a"])
    assert (found["epoch"], found["name"], found["scores"]) == (3, "seg", [0.5, None])


def test_saving_leaves_one_file(path):
    checkpoint.save(path, CONTENT)
    checkpoint.save(path, CONTENT)
    assert os.listdir(path.parent) == [path.name]


# ---------------------------------------------------------------- whole or not there


def test_everything_is_written_before_the_disk_is_asked_to_sync(path, monkeypatch):
    """First the whole content, then the name in its folder; what still waits in Python's buffer would be lost."""
    synced = []

    def fsync(number):
        status = os.fstat(number)
        synced.append(("folder", None) if stat.S_ISDIR(status.st_mode) else ("file", status.st_size))

    monkeypatch.setattr(files.os, "fsync", fsync)
    files.write_json(path, {"epoch": 3})
    assert path.stat().st_size > 0
    assert synced == [("file", path.stat().st_size), ("folder", None)]


def write_half(content: object, file) -> None:
    file.write(b"half of a checkpoint")
    disk_full()


@pytest.mark.parametrize(("where", "replacement"), [("torch.save", write_half), ("os.fsync", disk_full)])
def test_a_full_disk_leaves_the_old_file(path, monkeypatch, where, replacement):
    checkpoint.save(path, {"epoch": 1})
    with monkeypatch.context() as patch:
        patch.setattr(where, replacement)
        with pytest.raises(UserError, match="No space left") as error:
            checkpoint.save(path, {"epoch": 2})
    assert_one_sentence_about(error, path)
    assert checkpoint.load(path)["epoch"] == 1
    assert os.listdir(path.parent) == [path.name], "no temporary file stays"


def test_a_full_disk_below_torch_save_is_a_user_error(path, monkeypatch):
    class SmallDisk:
        """A file on a disk with room for a thousand bytes."""

        def __init__(self, name, mode):
            self.file, self.room = open(name, mode), 1000  # noqa: SIM115

        def write(self, data):
            self.room -= len(data)
            return self.file.write(data) if self.room >= 0 else disk_full()

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

    monkeypatch.setattr("builtins.open", SmallDisk)
    with pytest.raises(UserError) as error:
        checkpoint.save(path, {"weights": torch.zeros(10_000)})
    assert_one_sentence_about(error, path)
    assert os.listdir(path.parent) == []


def test_an_interruption_leaves_the_old_file_and_no_temporary(path, monkeypatch):
    def interrupted(content, file):
        file.write(b"half")
        raise KeyboardInterrupt

    checkpoint.save(path, {"epoch": 1})
    with monkeypatch.context() as patch:
        patch.setattr("mtl_utils.checkpoint.torch.save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save(path, {"epoch": 2})
    assert checkpoint.load(path)["epoch"] == 1
    assert os.listdir(path.parent) == [path.name]


def test_a_failed_first_save_leaves_no_file(path, monkeypatch):
    monkeypatch.setattr("mtl_utils.checkpoint.torch.save", write_half)
    with pytest.raises(UserError):
        checkpoint.save(path, CONTENT)
    assert os.listdir(path.parent) == []


def test_a_folder_that_cannot_be_made_is_a_user_error(tmp_path):
    (tmp_path / "run").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="run"):
        checkpoint.save(tmp_path / "run" / "model.pt", CONTENT)


# ---------------------------------------------------------------- files that are none of ours


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, witness: Path):
        self.witness = witness

    def __reduce__(self):
        return os.system, (f"touch '{self.witness}'",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_would_run_code_is_refused(path, tmp_path, zipped):
    witness = tmp_path / "witness"
    path.parent.mkdir()
    torch.save({"format": checkpoint.FORMAT, "model": Evil(witness)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError) as error:
        checkpoint.load(path)
    assert_one_sentence_about(error, path)
    assert not witness.exists()
    torch.load(path, weights_only=False)
    assert witness.exists(), "the file is as evil as it should be"


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_a_user_error(path, share):
    checkpoint.save(path, CONTENT)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError) as error:
        checkpoint.load(path)
    assert_one_sentence_about(error, path)


@pytest.mark.parametrize(
    "content", [b"weights\n", b"this is a text, no checkpoint\n", b"{}", b"\x00" * 100, b"PK\x03\x04"]
)
def test_a_file_of_another_kind_is_a_user_error(path, content):
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        checkpoint.load(path)
    assert_one_sentence_about(error, path)


def test_a_missing_file_is_a_user_error(path):
    with pytest.raises(UserError, match="does not exist") as error:
        checkpoint.load(path)
    assert_one_sentence_about(error, path)


def test_a_folder_instead_of_a_file_is_a_user_error(tmp_path):
    with pytest.raises(UserError) as error:
        checkpoint.load(tmp_path)
    assert_one_sentence_about(error, tmp_path)


@pytest.mark.parametrize("content", [{"format": 99}, {"epoch": 1}, [1, 2], torch.zeros(3)])
def test_another_version_is_a_user_error(path, content):
    path.parent.mkdir()
    torch.save(content, path)
    with pytest.raises(UserError, match="format") as error:
        checkpoint.load(path)
    assert_one_sentence_about(error, path)


def test_files_of_the_former_network_are_another_version(path):
    """Format 2 held MobileNetV2's trunk, and stage 0's weights with a classifier of their own."""
    path.parent.mkdir()
    torch.save({"format": 2, "model": {}, "classifier": {}, "classes": [], "settings": {"widths": "mobilenetv2"}}, path)
    with pytest.raises(UserError, match="has checkpoint format 2, this version reads 3: train it again") as error:
        load_model(path)
    assert_one_sentence_about(error, path)


# ---------------------------------------------------------------- JSON


def test_json_is_written_whole_and_readable(path):
    files.write_json(path, {"mIoU": 0.5, "name": "Übung → ✅", "none": None})
    assert json.loads(path.read_text(encoding="utf-8")) == {"mIoU": 0.5, "name": "Übung → ✅", "none": None}
    assert "→ ✅" in path.read_text(encoding="utf-8")


def test_json_with_nan_is_refused_and_the_old_file_stays(path):
    files.write_json(path, {"mIoU": 0.5})
    with pytest.raises(ValueError):
        files.write_json(path, {"mIoU": float("nan")})
    assert json.loads(path.read_text()) == {"mIoU": 0.5}


def test_json_on_a_full_disk_leaves_the_old_file(path, monkeypatch):
    files.write_json(path, {"epoch": 1})
    monkeypatch.setattr("mtl_utils.files.os.fsync", disk_full)
    with pytest.raises(UserError) as error:
        files.write_json(path, {"epoch": 2})
    assert_one_sentence_about(error, path)
    assert json.loads(path.read_text()) == {"epoch": 1}
    assert os.listdir(path.parent) == [path.name]
