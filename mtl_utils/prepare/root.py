"""The data root: the folder that holds the three mini sets, how it was chosen, and a fingerprint of its contents."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from mtl_utils import environment, files, layout
from mtl_utils.files import UserError, user_path
from mtl_utils.prepare.synthetic import write_synthetic
from mtl_utils.tasks import FOLDERS, TASKS, Task

SYNTHETIC = "synthetic"  # how a root of rendered sets was chosen


@dataclass(frozen=True)
class Root:
    """The folder that holds the mini sets and how it was chosen."""

    path: Path
    chosen_by: str  # "--data-root", "MTL_DATA_ROOT", "data/" or "synthetic"

    @property
    def is_synthetic(self) -> bool:
        """Whether the sets are rendered by code instead of photographs."""
        return self.chosen_by == SYNTHETIC

    @property
    def kind(self) -> str:
        """The word for it in names of folders: "synthetic" or "real"."""
        return "synthetic" if self.is_synthetic else "real"

    def __str__(self) -> str:
        if self.is_synthetic:
            return "synthetic mini sets, rendered by code"
        return f"mini sets in {self.path.name!r} (chosen by {self.chosen_by})"


def find_root(given: str | Path | None = None, tasks: tuple[Task, ...] = TASKS) -> Root:
    """The data root: `given`, else MTL_DATA_ROOT, else data/ if it holds the sets, else the synthetic sets.

    Raises UserError when the folder that was asked for holds none of the sets of `tasks`.
    """
    if given:
        return chosen_root(given, "--data-root", tasks)
    variable = environment.data_root()
    if variable:
        return chosen_root(variable, environment.DATA_ROOT, tasks)
    return default_root()


def chosen_root(value: str | Path, chosen_by: str, tasks: tuple[Task, ...]) -> Root:
    """The root that a user named; a wrong one is never replaced by another."""
    path = user_path(value)
    if not any(layout.has_set(path, task) for task in tasks):
        sets = ", ".join(FOLDERS[task] for task in tasks)
        raise UserError(f"{value} (from {chosen_by}) holds none of {sets}: name the folder that they lie in.")
    return Root(path, SYNTHETIC if path == synthetic_folder() else chosen_by)


def default_root() -> Root:
    """data/ of the project where it holds the sets, else the synthetic sets, rendered if need be."""
    folder = files.PROJECT / "data"
    present = [FOLDERS[task] for task in TASKS if layout.has_set(folder, task)]
    if len(present) == len(TASKS):
        return Root(folder, "data/")
    if present:
        raise UserError(f"data/ holds only {', '.join(present)}: complete it (`python -m mtl_utils data fetch`).")
    write_synthetic(synthetic_folder())
    return Root(synthetic_folder(), SYNTHETIC)


def synthetic_folder() -> Path:
    """Where the synthetic sets are rendered to."""
    return files.PROJECT / "data" / "synthetic"


def fingerprint(root: Path) -> str:
    """A short hash of the names and sizes of all files of the three sets: two roots with other data differ in it."""
    paths = []
    for task in TASKS:
        for path in layout.set_folder(root, task).rglob("*"):
            parts = path.relative_to(root).parts
            is_data = not any(map(layout.is_junk, parts))  # file managers may write into any folder at any time
            if is_data and path.is_file():
                paths.append(path)
    lines = [f"{path.relative_to(root).as_posix()} {path.stat().st_size}" for path in sorted(paths)]
    digest = hashlib.sha256("\n".join(lines).encode())
    return digest.hexdigest()[:16]
