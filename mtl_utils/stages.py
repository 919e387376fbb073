"""A run: its folder, its data, and the three stages that hand their results on through files.

Files of a run, for N = 1, 2, 3:
    stageN_TASK.pt          the stage's best model, for use: weights, settings, classes, metrics (a few MB)
    stageN_TASK.state.pt    everything to continue: model, average, optimiser, schedule, replay buffer, chance
    stageN_TASK.json        settings, history and metrics, rewritten after every epoch
    metrics.json            the results of all finished stages
"""

import json
import os
import time
from collections.abc import Callable
from functools import cache, cached_property
from pathlib import Path

import torch

from mtl_utils import checkpoint, pretrained, report
from mtl_utils.data import Classes, MiniSet, Root, find_classes, find_root, fingerprint
from mtl_utils.evaluation import evaluate
from mtl_utils.memory import remember
from mtl_utils.model import UnifiedModel, count_parameters, load_weights
from mtl_utils.objects import shared_classes
from mtl_utils.remedies import make_remedies
from mtl_utils.replay import ReplayBuffer
from mtl_utils.settings import (
    METRIC_NAMES,
    PROJECT,
    RESULTS,
    TASK_NAMES,
    TASKS,
    WEIGHTS,
    Settings,
    UserError,
    get_settings,
)
from mtl_utils.training import Trainer, finish_stage, train


class Run:
    """One run of the three stages in a folder of its own, with given settings on given data."""

    def __init__(self, settings: Settings | None = None, folder: str | Path | None = None, root: Root | None = None):
        self.settings = settings or get_settings()
        self.root = root or find_root()
        kind = "synthetic" if self.root.chosen_by == "synthetic" else "real"
        runs = Path(os.environ.get("MTL_RUNS", PROJECT / "runs"))
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
        start = pretrained.label(self.settings.widths)
        return {"settings": self.settings.as_dict(), "data": fingerprint(self.root.path), "start": start}

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
            what = {"settings": "settings", "data": "data", "start": "starting weights"}[other[0]]
            raise UserError(f"{path} was made with other {what}: name another folder (--name or MTL_RUN) or delete it.")
        return found

    def finished(self, task: str) -> bool:
        """Whether a stage is done, so that it is loaded instead of trained."""
        return all(self.path(task, e).exists() for e in (".pt", ".state.pt")) and "metrics" in (self.result(task) or {})

    @property
    def begun(self) -> bool:
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
        model.pretrained = content["start"] != pretrained.NOTHING
    except (KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"{path} holds no model that this version can build: take one that it has trained.") from error
    return model.eval().to(memory_format=torch.channels_last), content


def build(settings: Settings, classes: Classes) -> UnifiedModel:
    """A new model for the classes, with random weights that the seed decides."""
    torch.manual_seed(settings.seed)
    return UnifiedModel(settings.widths, num_det=len(classes.det), num_cls=len(classes.cls))


def run_stage(run: Run, task: str, after_epoch: Callable[[Trainer], None] | None = None) -> dict:
    """Train one stage, or continue it, or load it when it is finished; returns its JSON (key, history, metrics).

    A predecessor that is missing is named and trained first. `after_epoch` is called after every epoch.
    """
    if run.finished(task):
        return run.result(task)
    for earlier in predecessors(run.settings, task):
        if not run.finished(earlier):
            name = run.path(earlier).name
            print(f"{name} is missing (notebook {TASKS.index(earlier) + 3:02d} makes it): training it first.")
            run_stage(run, earlier)
    trainer = make_trainer(run, task)
    train(trainer, lambda t: (record(run, t), after_epoch and after_epoch(t)))
    return conclude(run, trainer)


def open_results(run: Run) -> tuple[dict, dict[str, UnifiedModel]]:
    """The metrics.json of a run and the models after its stages; missing stages are trained first.

    While nothing of the run is there, it is the committed run that is shown: its metrics and its final model.
    """
    if not run.begun and WEIGHTS.exists():
        print(f"{run.folder.name}/ holds no stage yet: what follows is the run that came with the project")
        return report.read_metrics(RESULTS), {"cls": load_model(WEIGHTS)[0].to(run.device)}
    for task in TASKS:
        run_stage(run, task)
    return report.read_metrics(run.folder / "metrics.json"), {task: run.model(task) for task in TASKS}


def predecessors(settings: Settings, task: str) -> list[str]:
    """The stages that must be finished before a stage; joint training has only one."""
    return [] if settings.joint else settings.earlier(task)


def make_trainer(run: Run, task: str) -> Trainer:
    """A trainer at the beginning of a stage, or where the stage was stopped."""
    model, buffer = beginning(run, task)
    remedies = make_remedies(run.settings, model, task, buffer.fisher)
    trainer = Trainer(model, run.data(task, "train"), buffer, run.settings, run.device, remedies)
    if run.result(task) and run.path(task, ".state.pt").exists():
        trainer.load_state_dict(checkpoint.load(run.path(task, ".state.pt")))
        print(f"continuing {TASK_NAMES[task]} after epoch {len(trainer.history)}")
    else:
        run.path(task, ".json").unlink(missing_ok=True)  # without a state there is nothing to continue
    return trainer


def beginning(run: Run, task: str) -> tuple[UnifiedModel, ReplayBuffer]:
    """The model and the replay buffer that a stage starts with: those of the stage before, or new ones."""
    buffer = ReplayBuffer(run.settings.memory)
    if before := predecessors(run.settings, task):
        model, _ = load_model(run.path(before[-1]))
        buffer.load_state_dict(checkpoint.load(run.path(before[-1], ".state.pt"))["buffer"])
        if task == "det" and "seg" in before:
            model.head.share_classes(shared_classes(run.classes.det))
        return model, buffer
    model = build(run.settings, run.classes)
    pretrained.start(model, run.classes.cls)
    for other in run.settings.earlier(task):  # joint training: everything is at hand from the beginning
        buffer.fill(run.data(other, "train"), torch.Generator().manual_seed(run.settings.seed))
    return model, buffer


def record(run: Run, trainer: Trainer) -> None:
    """After an epoch: evaluate when it is time, then put state and history on the disk.

    Raises UserError where another process, say a second notebook, has trained this stage as far in the meantime.
    """
    stored = run.result(trainer.task) or {"history": []}
    if len(stored["history"]) >= len(trainer.history):
        raise UserError(f"Another process trains in {run.folder} too: stop one of the two, then run again.")
    every, last = run.settings.eval_every, trainer.finished
    if last or len(trainer.history) % every == 0:
        trainer.history[-1]["val"] = {task: m[METRIC_NAMES[task]] for task, m in evaluate_all(run, trainer).items()}
    checkpoint.save(run.path(trainer.task, ".state.pt"), trainer.state_dict())
    checkpoint.write_json(run.path(trainer.task, ".json"), {"key": run.key, "history": trainer.history})


def evaluate_all(run: Run, trainer: Trainer) -> dict[str, dict]:
    """Metrics of the averaged weights on val for every task learned so far."""
    return evaluate_tasks(run, trainer.ema.module, trainer.task)


def evaluate_tasks(run: Run, model: torch.nn.Module, task: str) -> dict[str, dict]:
    """Metrics of a model on val for the task of a stage and all before it."""
    learned = [*run.settings.earlier(task), task]
    return {t: evaluate(model, run.data(t, "val"), run.settings.test_size[t]) for t in learned}


def conclude(run: Run, trainer: Trainer) -> dict:
    """After the last epoch: evaluate the best model, fill the buffer, save both, and report the stage."""
    task, model = trainer.task, best_model(run, trainer)
    metrics = evaluate_tasks(run, model, task)
    if task != run.settings.tasks[-1]:
        remember(trainer, model)
    result = {
        "key": run.key,
        "history": trainer.history,
        "best_epoch": trainer.best["epoch"],
        "minutes": sum(entry["seconds"] for entry in trainer.history) / 60,
        "metrics": metrics,
    }
    common = {"classes": run.classes.as_dict(), "settings": run.settings.as_dict(), "start": run.key["start"]}
    scores = {t: m[METRIC_NAMES[t]] for t, m in metrics.items()}
    checkpoint.save(run.path(task, ".state.pt"), trainer.state_dict())
    weights = checkpoint.halved(model.state_dict())
    checkpoint.save(run.path(task), common | {"model": weights, "stage": task, "val": scores})
    checkpoint.write_json(run.path(task, ".json"), result)
    write_metrics(run)
    return result


def best_model(run: Run, trainer: Trainer) -> UnifiedModel:
    """The model that a stage hands on, as it will be read from its file: rounded to half precision."""
    model = build(run.settings, run.classes)
    load_weights(model, trainer.best["model"])
    load_weights(model, checkpoint.halved(finish_stage(model, run.settings).state_dict()))
    return model.to(run.device, memory_format=torch.channels_last)


def write_metrics(run: Run) -> None:
    """metrics.json: the results of the stages finished so far, from which all tables and figures are made."""
    done = {task: run.result(task) for task in TASKS if run.finished(task)}
    about = run.key | {
        "source": str(run.root),
        "device": run.device,
        "parameters": count_parameters(build(run.settings, run.classes)),
        "written": time.strftime("%Y-%m-%d"),
    }
    stages = {task: {k: v for k, v in result.items() if k != "key"} for task, result in done.items()}
    checkpoint.write_json(run.folder / "metrics.json", about | {"classes": run.classes.as_dict(), "stages": stages})
