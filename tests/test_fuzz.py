"""Mutated data roots, weights and command lines: each is read rightly or ends in one sentence, never in a traceback.

MTL_FUZZ sets the number of examples of each kind (default 40); `make fuzz` takes many.
"""

import contextlib
import io
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

hypothesis = pytest.importorskip("hypothesis", reason="requirements-dev.txt brings it")

from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from mtl_utils.cli.evaluate import evaluate_command  # noqa: E402
from mtl_utils.cli.main import main  # noqa: E402
from mtl_utils.data import MiniSet, find_classes  # noqa: E402
from mtl_utils.files import UserError  # noqa: E402
from mtl_utils.prepare import check  # noqa: E402
from mtl_utils.run import load_model  # noqa: E402
from mtl_utils.tasks import SPLITS, TASKS  # noqa: E402

EXAMPLES = int(os.environ.get("MTL_FUZZ", 40))
SLOWEST = 20  # seconds that one example may take
FUZZ = settings(
    max_examples=EXAMPLES,
    derandomize="MTL_FUZZ" not in os.environ,  # the same examples in every run of the tests, others on demand
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)

Change = Callable[[Path], None]  # of a data root

# ---------------------------------------------------------------- data roots

SMALL = st.integers(-3, 3)
NUMBERS = st.one_of(SMALL, st.floats(), st.integers(-(2**70), 2**70))
PLAIN = st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=8))
VALUES = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=4), inner))


def all_files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


@st.composite
def file_changes(draw: Any) -> Change:
    """Something that happens to one file."""
    place = draw(st.integers(0, 10**6))
    kind = draw(st.sampled_from(["cut", "flip", "empty", "garbage", "delete", "rename", "swap", "folder", "copy"]))
    number = draw(st.integers(0, 10**6))
    name = draw(st.sampled_from(["a b.jpg", "ä.png", ".hidden", "X.JPG", "0.webp", "x.jpeg"]))

    def change(root: Path) -> None:
        files = all_files(root)
        path = files[place % len(files)]
        data = path.read_bytes()
        if kind == "cut":
            path.write_bytes(data[: number % len(data)])
        elif kind == "flip":
            index = number % len(data)
            path.write_bytes(data[:index] + bytes([data[index] ^ (1 + number % 255)]) + data[index + 1 :])
        elif kind == "empty":
            path.write_bytes(b"")
        elif kind == "garbage":
            path.write_bytes(bytes(number % 251 for _ in range(300)))
        elif kind == "rename":
            path.rename(path.with_name(name))
        elif kind == "swap":
            other = files[number % len(files)]
            other_data = other.read_bytes()
            other.write_bytes(data)
            path.write_bytes(other_data)
        elif kind == "copy":
            path.with_name(name).write_bytes(data)
        else:
            path.unlink()
            if kind == "folder":
                path.mkdir()

    return change


@st.composite
def json_changes(draw: Any) -> Change:
    """Another value somewhere in a COCO JSON, or none at all."""
    split = draw(st.sampled_from(SPLITS))
    table = draw(st.sampled_from(["images", "annotations", "categories"]))
    row = draw(st.integers(0, 10**6))
    key = draw(st.integers(0, 10**6))
    value = draw(VALUES)
    kind = draw(st.sampled_from(["value", "value", "value", "remove", "repeat", "table"]))

    def change(root: Path) -> None:
        path = root / "mini_coco_det" / "annotations" / f"mini_instances_{split}2017.json"
        content = json.loads(path.read_text())
        rows = content[table]
        entry = rows[row % len(rows)]
        names = sorted(entry)
        if kind == "table":
            content[table] = value
        elif kind == "repeat":
            rows.append(entry)
        elif kind == "remove":
            del entry[names[key % len(names)]]
        else:
            entry[names[key % len(names)]] = value
        path.write_text(json.dumps(content))

    return change


def readable(root: Path, task: str, split: str) -> str | None:
    """None where a split can be loaded, else the sentence."""
    try:
        MiniSet(task, root, split, find_classes(root))
    except UserError as error:
        return str(error)
    return None


@FUZZ
@given(change=st.one_of(file_changes(), json_changes()))
def test_a_changed_root_is_read_or_refused_in_a_sentence_and_data_check_agrees(change, tiny_root, tmp_path_factory):
    """Whatever a loader refuses, `data check` has listed before; whatever it takes, training can use."""
    root = tmp_path_factory.mktemp("fuzz") / "root"
    shutil.copytree(tiny_root, root)
    with contextlib.suppress(FileExistsError):
        change(root)
    started = time.monotonic()
    faults = {task: check.first_fault(root, task) for task in TASKS}
    for task in TASKS:
        for split in SPLITS:
            sentence = readable(root, task, split)
            if sentence is not None:
                assert "\n" not in sentence
                assert any(faults.values()), f"{sentence!r}, and data check lists nothing"
    assert time.monotonic() - started < SLOWEST
    shutil.rmtree(root.parent)


# ---------------------------------------------------------------- weights


@FUZZ
@given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255), cut=st.booleans())
def test_changed_weights_are_refused_in_a_sentence_or_are_the_same(place, flip, cut, trained_run, tmp_path_factory):
    whole = trained_run.path("cls").read_bytes()
    index = int(place * len(whole))
    changed = whole[:index] if cut else whole[:index] + bytes([whole[index] ^ flip]) + whole[index + 1 :]
    path = tmp_path_factory.mktemp("fuzz") / "weights.pt"
    path.write_bytes(changed)
    try:
        model, _ = load_model(path)
    except UserError as error:
        assert "\n" not in str(error) and str(path) in str(error)
    else:
        expected = trained_run.model("cls").state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    path.unlink()


# ---------------------------------------------------------------- command lines

WORDS = st.one_of(
    st.sampled_from(
        ["all", "seg", "det,cls", "seg,,", "val", "train", "test", "..", "/", "", "-1", "--", "nothing.pt"]
    ),
    st.text(max_size=6),
)
OPTIONS = st.sampled_from(["--weights", "--data_root", "--data-root", "--tasks", "--split", "--json", "--help", "-x"])


def run_quietly(command: Callable[[list[str]], int], words: list[str]) -> tuple[int, str]:
    """The exit status of a command and what it wrote to standard error."""
    errors = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        try:
            status = command(words)
        except SystemExit as stop:  # argparse
            status = int(stop.code or 0)
    return status, errors.getvalue()


@FUZZ
@given(words=st.lists(st.one_of(OPTIONS, WORDS), max_size=8))
def test_any_words_end_the_marking_command_in_a_sentence(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, errors = run_quietly(evaluate_command, words)
    assert status in (0, 1, 2) and "Traceback" not in errors
    if status == 1:
        assert errors.startswith("error: ") and errors.count("\n") == 1


COMMANDS = st.sampled_from(["run", "train", "study", "publish", "log", "links", "data", "bench", "restart"])
HARMLESS = st.one_of(
    st.sampled_from(
        ["check", "--profile", "smoke", "none", "--name", "..", "--what", "seeds", "--seeds", "x", "OWNER"]
    ),
    st.text(max_size=4),
)


@FUZZ
@given(command=COMMANDS, words=st.lists(HARMLESS, max_size=4))
def test_any_words_end_a_command_in_a_sentence(command, words, tmp_path, monkeypatch):
    """The root that is named is missing, so that nothing trains and nothing is written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MTL_DATA_ROOT", str(tmp_path / "missing"))
    monkeypatch.setenv("MTL_RUNS", str(tmp_path / "runs"))
    if command in ("publish", "links"):
        words = ["no such run", *words]  # without a run, publish would remake the pages
    status, errors = run_quietly(main, [command, *words])
    assert status in (0, 1, 2) and "Traceback" not in errors
    if status == 1:
        assert errors.startswith("error: ") or command == "data"
    assert not (tmp_path / "runs").exists()
