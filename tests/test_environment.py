"""The environment variables are read at the call, and each has one default."""

from pathlib import Path

import pytest

from mtl_utils import environment, files


@pytest.fixture(autouse=True)
def without_variables(monkeypatch):
    names = (
        "MTL_PROFILE",
        "MTL_DATA_ROOT",
        "MTL_RUN",
        "MTL_RUNS",
        "MTL_IMAGENET_WEIGHTS",
        "MTL_SKIP_BROKEN",
        "MTL_DEVICE",
        "COLAB_RELEASE_TAG",
    )
    for name in (*names, "RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


def test_without_variables_there_are_defaults():
    assert environment.profile() is environment.data_root() is environment.run_folder() is None
    assert environment.runs_folder() == files.PROJECT / "runs"
    assert environment.imagenet_weights() == "" and environment.device() is None
    assert (environment.process_rank(), environment.process_count(), environment.local_rank()) == (0, 1, 0)
    assert not environment.in_colab() and not environment.skip_broken()


@pytest.mark.parametrize(
    ("name", "value", "read", "expected"),
    [
        ("MTL_PROFILE", "quick", environment.profile, "quick"),
        ("MTL_DATA_ROOT", "photos", environment.data_root, "photos"),
        ("MTL_DEVICE", "mps", environment.device, "mps"),
        ("MTL_RUN", "mine", environment.run_folder, "mine"),
        ("MTL_RUNS", "all_runs", environment.runs_folder, Path("all_runs")),
        ("MTL_IMAGENET_WEIGHTS", "nothing", environment.imagenet_weights, "nothing"),
        ("MTL_SKIP_BROKEN", "1", environment.skip_broken, True),
        ("MTL_SKIP_BROKEN", "0", environment.skip_broken, False),
        ("RANK", "3", environment.process_rank, 3),
        ("WORLD_SIZE", "4", environment.process_count, 4),
        ("LOCAL_RANK", "2", environment.local_rank, 2),
        ("COLAB_RELEASE_TAG", "", environment.in_colab, True),
    ],
)
def test_a_variable_is_read_at_the_call(monkeypatch, name, value, read, expected):
    monkeypatch.setenv(name, value)
    assert read() == expected


def test_an_empty_variable_is_as_good_as_none(monkeypatch):
    for name in ("MTL_PROFILE", "MTL_DATA_ROOT", "MTL_RUN", "MTL_RUNS"):
        monkeypatch.setenv(name, "")
    assert environment.profile() is environment.data_root() is environment.run_folder() is None
    assert environment.runs_folder() == files.PROJECT / "runs"
