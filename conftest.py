"""Chooses the smoke profile and a run folder of its own for every pytest session, notebooks included.

Tests expect the default folder of runs, so a MTL_RUNS of whoever runs them must not reach them.
"""

import os
import shutil
import tempfile

import pytest

collect_ignore = ["notebooks/zh-TW"]  # the same code as the English notebooks, which run


def pytest_configure(config: pytest.Config) -> None:
    """Set what tests and the notebooks' kernels inherit; MTL_DATA_ROOT stays as the user has it."""
    os.environ["MTL_PROFILE"] = "smoke"
    folder = tempfile.mkdtemp(prefix="mtl_smoke_")
    os.environ["MTL_RUN"] = os.path.join(folder, "run")
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    os.environ.pop("MTL_RUNS", None)
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The cells of notebooks, which --nbval collects, carry the marks of tests that execute notebooks."""
    for item in items:
        if item.path.suffix == ".ipynb":
            item.add_marker("notebooks")
            item.add_marker("slow")
