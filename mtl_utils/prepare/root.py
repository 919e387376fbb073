"""The data root: the folder that holds the three mini sets, how it was chosen, and fingerprints of its sets."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from mtl_utils import environment, files, layout
from mtl_utils.files import UserError, user_path
from mtl_utils.prepare.check import first_fault
from mtl_utils.prepare.folds import write_cross_fold
from mtl_utils.prepare.synthetic import write_synthetic
from mtl_utils.tasks import FOLDERS, SPLITS, TASKS, Task

SYNTHETIC = "synthetic"  # how a root of rendered sets was chosen
FINGERPRINT_DIGITS = 16  # of a SHA-256, kept as a fingerprint


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

    def first_fault(self, task: Task) -> str | None:
        """One sentence about what is wrong with a task's set, every file of which is decoded; None if nothing is."""
        return first_fault(self.path, task)

    def __str__(self) -> str:
        if self.is_synthetic:
            return "synthetic mini sets, rendered by code"
        return f"mini sets in {self.path.name!r} (chosen by {self.chosen_by})"

    @property
    def short_name(self) -> str:
        """The data, for the caption of a figure."""
        return "synthetic mini sets" if self.is_synthetic else f"mini sets in {self.path.name!r}"


def find_root(given: str | Path | None = None, tasks: tuple[Task, ...] = TASKS) -> Root:
    """The data root: `given`, else MTL_DATA_ROOT, else data/ if it holds the sets, else the synthetic sets.

    Raises UserError when the folder that was asked for holds none of the sets of `tasks`.
    """
    if given is not None:
        if not str(given).strip():  # such as a shell's variable that is not set
            raise UserError("--data-root is empty: name the folder that the mini sets lie in.")
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


def cross_fold(root: Root, folder: Path, fold: int) -> Root:
    """The root of a fold of cross-validation (0: the root itself), made in a folder below `folder` that names its data.

    Other photographs or labels get another folder, so that no old fold is taken for theirs.
    """
    if fold == 0:
        return root
    contents = " ".join(fingerprint(root.path, task) for task in TASKS)
    digest = hashlib.sha256(contents.encode()).hexdigest()[:FINGERPRINT_DIGITS]
    path = write_cross_fold(root.path, folder / f"folds-{digest}", fold)
    return Root(path, root.chosen_by)


def synthetic_folder() -> Path:
    """Where the synthetic sets are rendered to."""
    return files.PROJECT / "data" / "synthetic"


def fingerprint(root: Path, task: Task) -> str:
    """A short hash of the names and contents of all files that are read of one set: photographs and labels.

    Files that nothing reads do not change it. A split that is missing counts as empty.
    """
    digest = hashlib.sha256()
    for split in SPLITS:
        for path in layout.used_files(root, task, split):
            line = f"{split} {path.parent.name}/{path.name} {files.sha256(path)}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))  # a name may be no UTF-8
    return digest.hexdigest()[:FINGERPRINT_DIGITS]
