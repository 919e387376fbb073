"""What the root conftest.py sets before any test, and what a session leaves.

No variable of whoever runs the tests changes where runs lie, and a session that passed leaves no file on the disk.
"""

import importlib.util
import os
import subprocess
import sys
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


def test_a_session_that_passed_leaves_no_file_behind(tmp_path):
    variables = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_files.py"]
    subprocess.run(command, cwd=PROJECT, env=variables, check=True, capture_output=True)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == []
    assert not list(tmp_path.glob("mtl_smoke_*"))
