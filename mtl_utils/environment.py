"""The environment variables that the project reads, each at the call, so that a test or a notebook may set them.

Imports nothing that has to be installed.
"""

import os
from pathlib import Path

from mtl_utils import files

PROFILE = "MTL_PROFILE"  # smoke, quick or full
DATA_ROOT = "MTL_DATA_ROOT"  # folder of the mini sets
RUN = "MTL_RUN"  # folder of one run
RUNS = "MTL_RUNS"  # folder that holds the runs
IMAGENET_WEIGHTS = "MTL_IMAGENET_WEIGHTS"  # a file, or "nothing"
SKIP_BROKEN = "MTL_SKIP_BROKEN"  # 1: leave out broken images
WORKERS = "MTL_WORKERS"  # processes that decode and augment images
DEVICE = "MTL_DEVICE"  # cuda, mps or cpu
COLAB = "COLAB_RELEASE_TAG"  # set by Google Colab


def profile() -> str | None:
    """The profile that the user chose, None for the default one."""
    return os.environ.get(PROFILE) or None


def data_root() -> str | None:
    """The folder of the mini sets that the user chose, None for none."""
    return os.environ.get(DATA_ROOT) or None


def run_folder() -> str | None:
    """The folder of the run that the user chose, None for the default one."""
    return os.environ.get(RUN) or None


def runs_folder() -> Path:
    """The folder that holds the runs: MTL_RUNS, else runs/ of the project."""
    chosen = os.environ.get(RUNS)
    return Path(os.path.expanduser(chosen)) if chosen else files.PROJECT / "runs"


def skip_broken() -> bool:
    """Whether images that are broken or wrongly labelled are left out instead of refused."""
    return os.environ.get(SKIP_BROKEN, "") not in ("", "0")


def workers() -> int | None:
    """How many processes decode and augment images beside the one that trains; None for what the device suggests.

    Raises UserError for anything but a number from 0.
    """
    chosen = os.environ.get(WORKERS, "")
    if not chosen:
        return None
    if not chosen.isdecimal():
        raise files.UserError(f"MTL_WORKERS is {chosen!r}: it must be a number from 0.")
    return int(chosen)


def device() -> str | None:
    """The device that the user chose, None for the usual one."""
    return os.environ.get(DEVICE) or None


def imagenet_weights() -> str:
    """What new models start from: a file, "nothing", or "" for the weights that the project holds."""
    return os.environ.get(IMAGENET_WEIGHTS, "")


# set by torchrun; without it there is one process
# (RANK counts over all machines, LOCAL_RANK on one)


def process_rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ.get("RANK", 0))


def process_count() -> int:
    """How many processes share the work."""
    return int(os.environ.get("WORLD_SIZE", 1))


def local_rank() -> int:
    """The number of this process on its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", 0))


def local_count() -> int:
    """How many of the processes run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def meeting_place() -> tuple[str, int]:
    """The address and port where the processes of torchrun find one another."""
    return os.environ.get("MASTER_ADDR", "localhost"), int(os.environ.get("MASTER_PORT", 0))


def in_colab() -> bool:
    """Whether this is Google Colab."""
    return COLAB in os.environ
