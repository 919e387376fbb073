"""What the root conftest.py sets before any test: no variable of whoever runs the tests changes where runs lie."""

import importlib.util
import os
import tempfile
from pathlib import Path

from mtl_utils import environment
from mtl_utils.files import PROJECT


def test_the_folder_of_runs_is_the_default_one_whatever_the_user_has_set(monkeypatch, tmp_path, pytestconfig):
    spec = importlib.util.spec_from_file_location("root_conftest", PROJECT / "conftest.py")
    conftest = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conftest)
    for variable in ("MTL_RUNS", "MTL_RUN", "MTL_PROFILE"):
        monkeypatch.setenv(variable, str(tmp_path / "users"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    conftest.pytest_configure(pytestconfig)
    assert environment.runs_folder() == PROJECT / "runs"
    assert not Path(os.environ["MTL_RUN"]).is_relative_to(tmp_path / "users")
    assert os.environ["MTL_PROFILE"] == "smoke"


def test_no_folder_of_runs_is_chosen_in_tests():
    assert environment.runs_folder() == PROJECT / "runs"
