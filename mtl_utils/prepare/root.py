"""The data root: the folder that holds the three mini sets, how it was chosen, and a fingerprint of its contents."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from mtl_utils import files, layout
from mtl_utils.files import UserError, user_path
from mtl_utils.prepare.synthetic import write_synthetic
from mtl_utils.tasks import FOLDERS, TASKS


@dataclass(frozen=True)
class Root:
    """The folder that holds the mini sets and how it was chosen."""

    path: Path
    chosen_by: str  # "--data-root", "MTL_DATA_ROOT", "data/" or "synthetic"

    def __str__(self) -> str:
        if self.chosen_by == "synthetic":
            return "synthetic mini sets, rendered by code"
        return f"mini sets in {self.path.name!r} (chosen by {self.chosen_by})"


def find_root(given: str | Path | None = None, tasks: tuple[str, ...] = TASKS) -> Root:
    """The data root: `given`, else MTL_DATA_ROOT, else data/ if it holds the sets, else the synthetic sets.

    Raises UserError when the folder that was asked for holds none of the sets of `tasks`.
    """
    rendered = files.PROJECT / "data" / "synthetic"
    for value, chosen_by in ((given, "--data-root"), (os.environ.get("MTL_DATA_ROOT"), "MTL_DATA_ROOT")):
        if value:
            path = user_path(value)
            if not any(layout.has_set(path, task) for task in tasks):
                sets = ", ".join(FOLDERS[task] for task in tasks)
                raise UserError(f"{value} (from {chosen_by}) holds none of {sets}: name the folder that they lie in.")
            return Root(path, "synthetic" if path == rendered else chosen_by)
    present = [FOLDERS[task] for task in TASKS if layout.has_set(files.PROJECT / "data", task)]
    if len(present) == len(TASKS):
        return Root(files.PROJECT / "data", "data/")
    if present:
        raise UserError(f"data/ holds only {', '.join(present)}: complete it (`python -m mtl_utils data fetch`).")
    write_synthetic(rendered)
    return Root(rendered, "synthetic")


def fingerprint(root: Path) -> str:
    """A short hash of the names and sizes of all files of the three sets: two roots with other data differ in it."""
    files = sorted(p for task in TASKS for p in (root / FOLDERS[task]).rglob("[!.]*") if p.is_file())
    text = "\n".join(f"{p.relative_to(root).as_posix()} {p.stat().st_size}" for p in files)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
