"""Where a notebook runs, and what it needs there: checked everywhere, put in place in Google Colab.

Imports nothing that has to be installed, so that a missing package is named in a sentence.
"""

import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mtl_utils import environment, files
from mtl_utils.files import UserError

REQUIREMENTS = files.PROJECT / "requirements.txt"
LINE = re.compile(r"([\w-]+)>=([\d.]+)")  # a line of requirements.txt: package, lowest version
RELEASE = re.compile(r"\d+(\.\d+)*")  # the release numbers at the start of a version
COLABS_OWN = ("torch", "torchvision", "ipywidgets")  # Colab has versions that fit its GPUs and its pages: not touched
LOCAL_ONLY = (
    "babel",
    "jupyterlab",
    "nbval",
    "pytest",
)  # Colab is a Jupyter, and runs no tests
DRIVE = "/content/drive"  # where Colab shows a user's Google Drive
KEPT_SETS = "mtl_sets_{}.zip"  # the sets there, as a pack, by their version


def prepare(drive: bool = False) -> None:
    """Make a notebook ready to run. Elsewhere than in Colab this checks the packages' versions and does nothing else.

    In Colab it installs what is missing, keeps runs and sets on the user's Google Drive if `drive` is set (Colab asks
    first), and fetches the real sets unless MTL_DATA_ROOT names some. Raises UserError when a package is missing or
    too old.
    """
    lines = unmet(REQUIREMENTS.read_text(encoding="utf-8"))
    if not environment.in_colab():
        complain(lines)
        return
    left_alone = (*COLABS_OWN, *LOCAL_ONLY)
    install([line for line in lines if name_of(line) not in left_alone])
    if drive:
        keep_on_drive()
    if environment.data_root() is None:
        put_sets(files.PROJECT / "data", drive)


def put_sets(root: Path, drive: bool) -> None:
    """Put the real sets below a root: from the user's Drive, where an earlier notebook kept them, else anew."""
    from mtl_utils.prepare import pack  # here, since what it imports may just have been installed

    kept = on_drive() / KEPT_SETS.format(pack.version())
    if drive and kept.exists():
        try:
            pack.fetch_pack(root, str(kept))
        except UserError as error:
            raise UserError(f"{error} To fetch the sets again, delete {kept}.") from error
        return
    pack.fetch_sets(root)
    if not drive:
        return
    try:
        pack.write_pack(root, kept)  # the next notebook's machine then takes seconds
    except OSError as error:
        print(f"The sets are here, but could not be kept on Google Drive ({error}): make room there.")


def unmet(requirements: str) -> list[str]:
    """The lines of a requirements file, each `package>=version`, that the installed packages do not meet."""
    return [f"{name}>={least}" for name, least in LINE.findall(requirements) if not meets(name, least)]


def meets(name: str, least: str) -> bool:
    """Whether a package is installed in at least this version."""
    try:
        return numbers(version(name)) >= numbers(least)
    except PackageNotFoundError:
        return False


def numbers(text: str) -> list[int]:
    """The release numbers of a version: 2.11.0+cu128 gives 2, 11, 0; none where it does not begin with a number."""
    release = RELEASE.match(text)
    if release is None:
        return []
    return [int(number) for number in release[0].split(".")]


def name_of(line: str) -> str:
    """The package that a line `package>=version` names."""
    return line.split(">=")[0]


def complain(lines: list[str]) -> None:
    """Name missing packages and the remedy, if there are any."""
    if lines:
        remedy = f"{sys.executable} -m pip install -r {REQUIREMENTS}"
        raise UserError(f"Missing or too old for this notebook: {', '.join(lines)}. Install with: {remedy}")


def install(lines: list[str]) -> None:
    """Install packages; nothing happens where none is missing."""
    if lines:
        print("installing", ", ".join(lines))
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *lines], check=True)


def keep_on_drive() -> None:
    """Keep runs on Google Drive, where they outlive the machine that Colab lends."""
    from google.colab import drive  # there in Colab only

    drive.mount(DRIVE)
    os.environ[environment.RUNS] = str(on_drive() / "mtl_runs")


def on_drive() -> Path:
    """The user's own folder on Google Drive."""
    return Path(DRIVE) / "MyDrive"
