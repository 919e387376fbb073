"""What made a result, beside its settings, data and starting weights: code, versions and machine."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from mtl_utils import files

PACKAGES = ("torch", "torchvision", "numpy", "pycocotools", "pillow")  # that numbers may depend on
CODE = ("mtl_utils", "eval.py")  # changes of other files change no number


def provenance() -> dict[str, Any]:
    """The commit of the code and whether it was changed since, versions, and what computed."""
    # what is printed is the list of changed files
    changed = git("status", "--porcelain", "--", *CODE)
    return {
        "commit": git("rev-parse", "HEAD"),  # None outside of a repository
        "changed": None if changed is None else bool(changed),
        "python": platform.python_version(),
        "packages": {name: installed_version(name) for name in PACKAGES},
        "machine": platform.machine(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
    }


def git(*words: str) -> str | None:
    """What a command of git prints about the project; None without git, or where the project is no repository."""
    # no shell, so that no name can be a command
    try:
        done = subprocess.run(["git", *words], cwd=files.PROJECT, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def installed_version(package: str) -> str | None:
    """The version of an installed package, None where it is missing."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
