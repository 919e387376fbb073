import errno
import json
import os
import random
import stat
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import no_waiting

from mtl_utils import checkpoint, files
from mtl_utils.files import PROJECT, UserError
from mtl_utils.run import load_model

CONTENT = {"weights": {"a": torch.arange(6.0).reshape(2, 3)}, "epoch": 3, "name": "seg", "scores": [0.5, None]}
PLAIN = {  # of the kinds that the state of a run holds
    "image": torch.arange(256, dtype=torch.uint8),
    "labels": torch.tensor([-(2**63), 2**63 - 1]),
    "crowd": torch.tensor([True, False]),
    "half": torch.tensor([65504.0], dtype=torch.half),
    "nothing": torch.zeros(0, 4),
    "window": torch.arange(12.0).reshape(3, 4)[1:, ::2],
}
REFUSED_WITHIN = 1.0  # seconds of the processor


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
    checkpoint.save(path, {"samples": [PLAIN, PLAIN], "best": None, "loss": float("inf"), "betas": (0.9, 0.999)})
    found = checkpoint.load(path)
    for name, value in PLAIN.items():
        assert torch.equal(found["samples"][1][name], value) and found["samples"][1][name].dtype == value.dtype
    assert (found["best"], found["loss"], found["betas"]) == (None, float("inf"), (0.9, 0.999))


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


# ---------------------------------------------------------------- bytes that have changed


def flipped(data: bytes, place: int, bit: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]


def test_a_flipped_bit_is_noticed_or_changes_nothing(path):
    """In tensors, in the pickle, in the headers and in the list of members at the end."""
    generator = random.Random(0)
    weights = {"a": torch.randn(500), "b": torch.randint(0, 256, (700,), dtype=torch.uint8)}
    checkpoint.save(path, weights)
    whole = path.read_bytes()
    refused = 0
    for place in generator.sample(range(len(whole)), 60):
        path.write_bytes(flipped(whole, place, generator.randrange(8)))
        try:
            found = checkpoint.load(path)
        except UserError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            refused += 1
        else:
            assert found.keys() == {"format", *weights}, place
            assert all(torch.equal(found[name], value) for name, value in weights.items()), place
    assert refused > 30, "most bytes matter"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.half, torch.bfloat16, torch.float64])
def test_a_tensor_that_is_not_finite_is_named(path, value, dtype):
    spoiled = torch.zeros(3, 4, dtype=dtype)
    spoiled[1, 2] = value
    checkpoint.save(path, {"model": {"head.weight": torch.ones(2)}, "steps": [{"average": spoiled}]})
    with pytest.raises(UserError, match=r"its tensor 'steps\.0\.average' holds values that are not finite") as error:
        checkpoint.load(path)
    assert_one_sentence_about(error, path)


# ---------------------------------------------------------------- files that would hang or fill the machine


def assert_refused(path: Path, message: str) -> None:
    started = time.process_time()
    with no_waiting(), pytest.raises(UserError, match=message) as error:
        checkpoint.load(path)
    assert time.process_time() - started < REFUSED_WITHIN
    assert_one_sentence_about(error, path)


SPECIAL: dict[str, Callable[[Path], object]] = {
    "pipe": lambda path: os.mkfifo(path),  # looked up when it is called: Windows has none
    "folder": Path.mkdir,
    "device": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.mark.skipif(os.name == "nt", reason="Windows has neither pipes nor devices in folders")
@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_no_regular_file_is_not_opened(tmp_path, kind):
    path = tmp_path / "model.pt"
    SPECIAL[kind](path)
    assert_refused(path, "it is a folder, a pipe or a device; take an intact file")


def rewrite(path: Path, pickled: bytes | None = None, compression: int = zipfile.ZIP_STORED) -> zipfile.ZipFile:
    """Pack a checkpoint's members again, with another pickle where one is given; the archive is still open."""
    with zipfile.ZipFile(path) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    archive = zipfile.ZipFile(path, "w", compression)
    for name, data in members:
        is_replaced = pickled is not None and name.endswith("/data.pkl")
        archive.writestr(name, pickled if is_replaced else data)
    return archive


def compressed(path: Path) -> None:
    checkpoint.save(path, {"weights": torch.zeros(1_000_000)})
    rewrite(path, compression=zipfile.ZIP_DEFLATED).close()
    assert path.stat().st_size < 20_000


def too_many_members(path: Path) -> None:
    with rewrite(path) as archive:
        for number in range(10_001):
            archive.writestr(f"archive/data/{number + 100}", b"")


def long_names(path: Path) -> None:
    with rewrite(path) as archive:
        for number in range(40):
            archive.writestr(f"archive/{number}{'x' * 60_000}", b"")


def shared_bytes(path: Path) -> None:
    """Each member in the list is the same million bytes in the file."""
    with rewrite(path) as archive:
        archive.writestr("archive/data/100", bytes(1_000_000))
        archive.filelist += [archive.filelist[-1]] * 50


def two_pickles(path: Path) -> None:
    with rewrite(path) as archive:
        archive.writestr("archive/DATA.PKL", b"")


def second_folder(path: Path) -> None:
    with rewrite(path) as archive:
        archive.writestr("model/data.pkl", b"")


def large_pickle(path: Path) -> None:
    checkpoint.save(path, {"text": 300_000 * "x"})


def legacy(path: Path) -> None:
    torch.save({"format": 3, **CONTENT}, path, _use_new_zipfile_serialization=False)


def repeated(path: Path) -> None:
    checkpoint.save(path, {"weights": torch.zeros(1).expand(1_000_000, 1_000)})


def pickle_of(key: bytes, value: bytes) -> bytes:
    """A pickle of {"format": 3, key: value}, from parts that are pickled already."""
    name = b"X" + struct.pack("<I", 6) + b"format"
    return b"\x80\x02}(" + name + b"K\x03" + key + value + b"u."


def with_pickle(key: bytes, value: bytes) -> Callable[[Path], None]:
    return lambda path: rewrite(path, pickle_of(key, value)).close()


HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "compressed": (compressed, r"'archive/\S+' in it is compressed"),
    "too many members": (too_many_members, "members, more than 10000"),
    "long list of members": (long_names, "its list of members is longer than"),
    "shared bytes": (shared_bytes, "bytes, more than the file"),
    "two pickles": (two_pickles, "two of its members have one name"),
    "second folder": (second_folder, r"it has 2 members data\.pkl instead of one"),
    "large pickle": (large_pickle, r"its data\.pkl has \d+ bytes, more than"),
    "no archive": (legacy, r"it is no archive of torch\.save"),
    "repeated number": (repeated, "its tensors, to 'weights', are larger than what the file holds"),
    "memory": (
        with_pickle(b"K\x01", b"c__builtin__\nbytearray\nJ\xff\xff\xff\x3f\x85R"),  # a gigabyte
        r"more than weights \('\S+ bytearray'\)",
    ),
    "deep key": (with_pickle(b")" + 5_000 * b"\x85", b"N"), "a tuple of more than 1000 values"),
    "doubled key": (with_pickle(b")" + 18 * b"q\x00h\x00\x86", b"N"), "a tuple of more than 1000 values"),
    "many values": (
        with_pickle(b"K\x01", b"](" + 100_000 * b"}" + b"e"),
        r"its data\.pkl has more than \d+ instructions",
    ),
    "deep value": (with_pickle(b"K\x01", 20_000 * b"]" + 19_999 * b"a"), "nested more than 100 deep"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_refused_at_once(path, kind):
    make, message = HOSTILE[kind]
    checkpoint.save(path, CONTENT)
    make(path)
    assert_refused(path, message)


MEASURE = """
import resource, sys
from pathlib import Path
from mtl_utils import checkpoint
from mtl_utils.files import UserError

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kilobytes

before = peak()
for name in sys.argv[1:]:
    try:
        checkpoint.load(Path(name))
    except UserError:
        continue
    raise SystemExit(f"{name} was not refused")
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems count memory in other units")
def test_refusing_hostile_files_takes_little_memory(path):
    """Among them are files that would unpack to many gigabytes."""
    names = []
    for number, (make, _) in enumerate(HOSTILE.values()):
        hostile = path.with_name(f"{number}.pt")
        checkpoint.save(hostile, CONTENT)
        make(hostile)
        names.append(str(hostile))
    done = subprocess.run([sys.executable, "-c", MEASURE, *names], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 100_000, "kilobytes"


def test_a_file_that_is_too_large_is_not_read(path, monkeypatch):
    checkpoint.save(path, CONTENT)
    monkeypatch.setattr(checkpoint, "MAX_BYTES", path.stat().st_size)
    checkpoint.load(path)
    monkeypatch.setattr(checkpoint, "MAX_BYTES", path.stat().st_size - 1)
    assert_refused(path, "it is larger than")


def test_a_list_that_holds_itself_ends_the_search_for_tensors(path):
    """It is harmless, and must not be followed for ever."""
    checkpoint.save(path, CONTENT)
    rewrite(path, pickle_of(b"K\x01", b"]q\x00h\x00a")).close()
    with no_waiting():
        found = checkpoint.load(path)[1]
    assert found[0] is found
    assert list(checkpoint.tensors_in(found)) == []


@pytest.mark.parametrize("version", [torch.tensor([3, 3]), [[3]], "3\n", 3.0])
def test_a_version_that_is_no_number_is_another_version(path, version):
    path.parent.mkdir()
    torch.save({"format": version}, path)
    assert_refused(path, "has checkpoint format None")


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
