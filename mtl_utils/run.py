"""A run: its folder, its data, and the three stages that hand their results on through files.

Files of a run, for N = 1, 2, 3:
    stageN_TASK.pt          the stage's best model, for use: weights, settings, classes, metrics (a few MB)
    stageN_TASK.state.pt    everything to continue: model, average, optimiser, schedule, replay buffer, chance
    stageN_TASK.json        settings, history and metrics, rewritten after every epoch
    metrics.json            the results of all finished stages
"""

import json
import os
from functools import cache, cached_property
from pathlib import Path

import torch

from mtl_utils import checkpoint, files, weights
from mtl_utils.data import MiniSet, find_classes
from mtl_utils.files import UserError
from mtl_utils.model import UnifiedModel
from mtl_utils.prepare.root import Root, find_root, fingerprint
from mtl_utils.settings import Settings, get_settings
from mtl_utils.tasks import TASK_NAMES, TASKS, Classes
from mtl_utils.weights import load_weights


class Run:
    """One run of the three stages in a folder of its own, with given settings on given data."""

    def __init__(self, settings: Settings | None = None, folder: str | Path | None = None, root: Root | None = None):
        self.settings = settings or get_settings()
        self.root = root or find_root()
        kind = "synthetic" if self.root.chosen_by == "synthetic" else "real"
        runs = Path(os.environ.get("MTL_RUNS", files.PROJECT / "runs"))
        self.folder = Path(folder or os.environ.get("MTL_RUN") or runs / f"{self.settings.profile}-{kind}")
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.data = cache(lambda task, split: MiniSet(task, self.root.path, split, self.classes))

    def __str__(self) -> str:
        return f"profile {self.settings.profile}, {self.root}, on {self.device}, files in {self.folder.name}/"

    @cached_property
    def classes(self) -> Classes:
        """The class lists of the data."""
        return find_classes(self.root.path)

    def path(self, task: str, ending: str = ".pt") -> Path:
        """One of the files of a stage."""
        return self.folder / f"stage{TASKS.index(task) + 1}_{TASK_NAMES[task]}{ending}"

    @cached_property
    def key(self) -> dict:
        """What a finished stage must agree in to be taken over: settings, data and starting weights."""
        start = weights.weights_label(self.settings.widths)
        return {
            "settings": self.settings.as_dict(),
            "data_fingerprint": fingerprint(self.root.path),
            "initial_weights": start,
        }

    def result(self, task: str) -> dict | None:
        """The JSON of a stage, or None: history, and metrics once it is finished.

        Raises UserError when it is damaged or was made with another key: finished work is never overwritten.
        """
        path = self.path(task, ".json")
        if not path.exists():
            return None
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            other = [name for name in self.key if found["key"][name] != self.key[name]]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged: delete it and run the stage again.") from error
        if other:
            what = {"settings": "settings", "data_fingerprint": "data", "initial_weights": "starting weights"}[other[0]]
            raise UserError(f"{path} was made with other {what}: name another folder (--name or MTL_RUN) or delete it.")
        return found

    def finished(self, task: str) -> bool:
        """Whether a stage is done, so that it is loaded instead of trained."""
        return all(self.path(task, e).exists() for e in (".pt", ".state.pt")) and "metrics" in (self.result(task) or {})

    @property
    def has_started(self) -> bool:
        """Whether any stage has finished an epoch."""
        return any(self.path(task, ".json").exists() for task in TASKS)

    def model(self, task: str) -> UnifiedModel:
        """The best model of a finished stage."""
        return load_model(self.path(task))[0].to(self.device)


def load_model(path: Path) -> tuple[UnifiedModel, dict]:
    """A trained model in eval mode and the checkpoint it came from. Raises UserError when the file is none."""
    content = checkpoint.load(path)
    try:
        model = build(Settings(widths=content["settings"]["widths"]), Classes.from_dict(content["classes"]))
        load_weights(model, content["model"])
        model.has_imagenet_trunk = content["initial_weights"] != weights.NOTHING
    except (KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"{path} holds no model that this version can build: take one that it has trained.") from error
    return model.eval().to(memory_format=torch.channels_last), content


def build(settings: Settings, classes: Classes) -> UnifiedModel:
    """A new model for the classes, with random weights that the seed decides."""
    torch.manual_seed(settings.seed)
    return UnifiedModel(settings.widths, num_det=len(classes.det), num_cls=len(classes.cls))
