"""Chooses the smoke profile and a run folder of its own for every pytest session, notebooks included."""

import os
import tempfile

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Set what the notebooks' kernels inherit; MTL_DATA_ROOT stays as the user has it."""
    os.environ["MTL_PROFILE"] = "smoke"
    os.environ["MTL_RUN"] = os.path.join(tempfile.mkdtemp(prefix="mtl_smoke_"), "run")
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
