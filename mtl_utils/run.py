"""A run: its folder, its data, its starting weights, and what it writes.

Files of a run, for N = 1, 2, 3:
    stageN_TASK.pt          for use: the weights of the epoch with the lowest training loss (half precision), classes,
                            settings, label of the starting weights, the metric of each task on val (a few MB)
    stageN_TASK.state.pt    to continue: model, averaged model, optimiser, schedule, gradient scaler, replay buffer, RNG
                            states, history, best epoch
    stageN_TASK.json        settings, history and metrics, rewritten after every epoch
    metrics.json            the results of all finished stages
    checked.json            fingerprints of the sets whose files were all found sound
    .lock                   held by the process that trains
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from mtl_utils import checkpoint, environment
from mtl_utils.data import MiniSet, find_classes
from mtl_utils.evaluation import StageMetrics, TaskMetrics
from mtl_utils.files import UserError, read_json, write_json
from mtl_utils.model import MAX_STRIDE, UnifiedModel, place_model
from mtl_utils.prepare.root import Root, find_root, fingerprint
from mtl_utils.settings import Settings, get_settings
from mtl_utils.tasks import SPLITS, TASKS, Classes, Task, stage_name
from mtl_utils.training import EpochRecord
from mtl_utils.transforms import longest_side
from mtl_utils.weights import (
    NOTHING,
    Mismatch,
    StartingWeights,
    find_starting_weights,
    load_weights,
    verify_file,
)

MAX_SIDE = 4096  # pixels of an input
CHECKED = "checked.json"
LOCK = ".lock"
DEVICES = ("cuda", "mps", "cpu")  # NVIDIA's and AMD's GPUs, Apple's, none


class InUse(UserError):
    """Another process trains in a run's folder."""


@dataclass(frozen=True)
class RunKey:
    """A stage on the disk is used again only if all of this is the same."""

    settings: Settings  # each decides the outcome, but for those of later tasks
    data_fingerprints: dict[Task, str]  # of the set of each task that the stage has seen
    initial_weights: str  # label of the starting weights

    def as_dict(self) -> dict[str, Any]:
        """Plain types, as they are stored."""
        return {
            "settings": self.settings.as_dict(),
            "data_fingerprints": self.data_fingerprints,
            "initial_weights": self.initial_weights,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "RunKey":
        """The inverse of as_dict; other keys are left alone."""
        settings = Settings.from_dict(values["settings"])
        return cls(settings, values["data_fingerprints"], values["initial_weights"])

    def difference(self, other: "RunKey") -> str | None:
        """In what two keys differ, None where they agree."""
        seen = self.data_fingerprints  # the tasks up to this stage
        if self.settings.of_tasks(seen) != other.settings.of_tasks(seen):
            return "settings"
        if self.data_fingerprints != other.data_fingerprints:
            return "data"
        if self.initial_weights != other.initial_weights:
            return "starting weights"
        return None


@dataclass
class StageResult:
    """What one stage has done so far; best epoch, minutes and metrics are there once it is finished."""

    key: RunKey
    history: list[EpochRecord]  # one record a finished epoch
    best_epoch: int | None = None  # from 1, by the lowest training loss
    minutes: float | None = None  # of training
    metrics: dict[Task, TaskMetrics] = field(default_factory=dict)  # on val, of every task learned so far
    before: dict[Task, TaskMetrics] = field(default_factory=dict)  # the first stage's: all tasks before any training
    provenance: dict[str, Any] = field(default_factory=dict)  # see provenance.py; nothing in results made before it

    @property
    def finished(self) -> bool:
        """Whether the stage is over and evaluated."""
        return bool(self.metrics)

    def as_dict(self) -> dict[str, Any]:
        """Plain types, as a stage's JSON holds them."""
        values: dict[str, Any] = {"key": self.key.as_dict(), "history": [record.as_dict() for record in self.history]}
        if self.finished:
            metrics = {task: result.as_dict() for task, result in self.metrics.items()}
            before = {task: result.as_dict() for task, result in self.before.items()}
            values |= {"best_epoch": self.best_epoch, "minutes": self.minutes, "metrics": metrics, "before": before}
            values |= {"provenance": self.provenance} if self.provenance else {}
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any], key: RunKey | None = None) -> "StageResult":
        """The inverse of as_dict; `key` stands in where metrics.json holds it once for all stages."""
        # both are absent while the stage is still being trained
        metrics = metrics_from_dict(values.get("metrics", {}))
        before = metrics_from_dict(values.get("before", {}))
        return cls(
            key=key or RunKey.from_dict(values["key"]),
            history=[EpochRecord.from_dict(record) for record in values["history"]],
            best_epoch=values.get("best_epoch"),
            minutes=values.get("minutes"),
            metrics=metrics,
            before=before,
            provenance=values.get("provenance", {}),
        )


def metrics_from_dict(values: dict[Task, Any]) -> dict[Task, TaskMetrics]:
    """The metrics of some tasks from plain types."""
    return {task: TaskMetrics.from_dict(task, result) for task, result in values.items()}


@dataclass
class RunMetrics:
    """metrics.json: the results of the finished stages, from which all tables and figures are made."""

    key: RunKey  # of the last finished stage
    source: str  # which data
    device: str  # one of DEVICES
    parameters: int  # of the model, frozen ones included
    written: str  # date
    classes: Classes
    stages: dict[Task, StageResult]  # in the order of the stages
    left_out: dict[Task, list[str]] = field(default_factory=dict)  # a sentence for each image that was left out

    @property
    def before(self) -> dict[Task, TaskMetrics]:
        """What the network scored on val before any stage; nothing while no stage is finished."""
        for result in self.stages.values():
            return result.before  # the first stage's
        return {}

    @property
    def stage_metrics(self) -> StageMetrics:
        """The metrics on val after each stage, of every task learned by then."""
        return {stage: result.metrics for stage, result in self.stages.items()}

    def as_dict(self) -> dict[str, Any]:
        """Plain types, as metrics.json holds them."""
        # settings and starting weights are those of all stages, and the last stage has seen all data: one key will do
        stages = {}
        for task, result in self.stages.items():
            values = result.as_dict()
            del values["key"]  # stands once, above
            stages[task] = values
        return self.key.as_dict() | {
            "source": self.source,
            "device": self.device,
            "parameters": self.parameters,
            "written": self.written,
            "classes": self.classes.as_dict(),
            **({"left_out": self.left_out} if self.left_out else {}),
            "stages": stages,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "RunMetrics":
        """The inverse of as_dict."""
        key = RunKey.from_dict(values)  # its three entries stand among the others
        # finished stages only: one that still trains has its own JSON
        stages = {}
        for task, result in values["stages"].items():
            stages[task] = StageResult.from_dict(result, key)
        # a missing entry is a KeyError: the file is of another version or damaged
        return cls(
            key=key,
            source=values["source"],
            device=values["device"],
            parameters=values["parameters"],
            written=values["written"],
            classes=Classes.from_dict(values["classes"]),
            stages=stages,
            left_out=values.get("left_out", {}),
        )


def read_metrics(path: Path) -> RunMetrics:
    """The contents of a metrics.json. Raises UserError when it is missing, damaged or of another version."""
    remedy = "train first, or name another run"
    values = read_json(path, remedy)
    try:
        return RunMetrics.from_dict(values)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged or of another version ({error!r}): {remedy}.") from error


class Run:
    """One run of the three stages in a folder of its own, with given settings on given data."""

    def __init__(self, settings: Settings | None = None, folder: str | Path | None = None, root: Root | None = None):
        # without arguments: the default profile, and the root that the environment names
        self.settings = settings or get_settings()
        self.root = root or find_root()
        # what the caller names comes first, then MTL_RUN, then the usual place
        self.folder = Path(folder or environment.run_folder() or self.default_folder())
        self.device = pick_device()
        self.loaded: dict[tuple[Task, str], MiniSet] = {}  # by task and split

    def __str__(self) -> str:
        return f"profile {self.settings.profile}, {self.root}, on {self.device}, files in {self.folder.name}/"

    @property
    def caption(self) -> str:
        """What a figure says of its origin: which run, on which data."""
        return f"{self.settings.caption}, {self.root.short_name}"

    def default_folder(self) -> Path:
        """The folder of a run that has no name: its profile and kind of data."""
        return environment.runs_folder() / f"{self.settings.profile}-{self.root.kind}"

    def data(self, task: Task, split: str) -> MiniSet:
        """One split of one task's set, read once; what is trained on with no more pixels than training needs."""
        # decoding a set takes seconds, and every evaluation asks for val
        if (task, split) not in self.loaded:
            skip = environment.skip_broken()
            longest = longest_side(task, self.settings.train_size[task]) if split == "train" else None
            self.loaded[task, split] = MiniSet(task, self.root.path, split, self.classes, skip, longest)
        return self.loaded[task, split]

    @cached_property
    def classes(self) -> Classes:
        """The class lists of the data."""
        return find_classes(self.root.path)

    @cached_property
    def starting_weights(self) -> StartingWeights:
        """What a new model of the run starts from: found, verified and read once."""
        return find_starting_weights()

    @cached_property
    def data_fingerprints(self) -> dict[Task, str]:
        """A fingerprint of the set of each of the run's tasks."""
        return {task: fingerprint(self.root.path, task) for task in self.settings.tasks}

    def key(self, stage: Task) -> RunKey:
        """What a finished stage must agree in to be taken over; of the data, what it has seen."""
        seen = {task: self.data_fingerprints[task] for task in (*self.settings.earlier(stage), stage)}
        return RunKey(self.settings, seen, self.starting_weights.label)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process; the operating system frees it when the process ends, however it does.

        Raises InUse where another process holds it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            remedy = "wait for it, stop it, or name another folder (--name or MTL_RUN)"
            raise InUse(f"Another process trains in {self.folder}: {remedy}.") from error
        except (NotImplementedError, OSError):
            pass  # some network drives know no locks: there a user must take care
        try:
            yield
        finally:
            lock.release()

    def check_data(self) -> None:
        """Open and decode every file of the run's sets, unless this run has found the same contents sound before.

        Raises UserError for the first fault, so that none stops a later stage. Where broken images are left out, each
        is named instead.
        """
        if environment.skip_broken():
            for task, sentences in self.left_out().items():
                for sentence in sentences:
                    print(f"{task}: left out: {sentence}")
            return
        record = self.folder / CHECKED  # beside the run, since a data folder may be read-only
        sound = read_json(record, "delete it") if record.exists() else {}
        for task in self.settings.tasks:
            if sound.get(task) == self.data_fingerprints[task]:
                continue
            # decoding all files of a mini set takes a few seconds
            fault = self.root.first_fault(task)
            if fault is not None:
                raise UserError(fault)
        write_json(record, self.data_fingerprints)

    def left_out(self) -> dict[Task, list[str]]:
        """A sentence for each image that is left out of the sets, by task; nothing for a whole set."""
        sentences = {}
        for task in self.settings.tasks:
            of_task: list[str] = []
            for split in SPLITS:
                of_task += self.data(task, split).left_out
            if of_task:  # a whole set needs no entry
                sentences[task] = of_task
        return sentences

    def path(self, task: Task, ending: str = ".pt") -> Path:
        """One of the files of a stage."""
        return self.folder / f"{stage_name(task)}{ending}"

    def result(self, task: Task) -> StageResult | None:
        """What the JSON of a stage holds, None where there is none.

        Raises UserError when it is damaged or was made with another key: finished work is never overwritten.
        """
        path = self.path(task, ".json")  # rewritten after every epoch
        if not path.exists():
            return None
        remedy = "delete it and run the stage again"
        try:
            result = StageResult.from_dict(read_json(path, remedy))
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is damaged or of another version: {remedy}.") from error
        # a stage of other settings, data or weights is somebody else's work
        other = self.key(task).difference(result.key)
        if other:
            remedy = "name another folder (--name or MTL_RUN) or delete it"
            raise UserError(f"{path} was made with other {other}: {remedy}.")
        return result

    def finished(self, task: Task) -> bool:
        """Whether a stage is done, so that it is loaded instead of trained."""
        # the JSON is written last, but any of the three may have been deleted since
        if not self.path(task).exists() or not self.path(task, ".state.pt").exists():
            return False
        result = self.result(task)
        return result is not None and result.finished

    @property
    def has_started(self) -> bool:
        """Whether any stage has finished an epoch."""
        return any(self.path(task, ".json").exists() for task in TASKS)

    def model(self, task: Task) -> UnifiedModel:
        """The best model of a finished stage."""
        model, _ = load_model(self.path(task))
        return place_model(model, self.device)


def pick_device() -> str:
    """The device that a run works on: the one that the user chose, else the GPU where there is one.

    A Mac's GPU has to be chosen: no test has run there yet. Raises UserError for a device that is not there.
    """
    chosen = environment.device()
    if chosen is None:  # the user leaves it to us
        return "cuda" if torch.cuda.is_available() else "cpu"
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if not present.get(chosen, False):
        choice = ", ".join(name for name in DEVICES if present[name])
        raise UserError(f"There is no device {chosen!r} here: --device or MTL_DEVICE is one of {choice}.")
    return chosen


def build(settings: Settings, classes: Classes) -> UnifiedModel:
    """A new model for the classes, with random weights that the seed decides."""
    torch.manual_seed(settings.seed)  # so that runs of one seed start alike
    return UnifiedModel(num_det=len(classes.det), num_cls=len(classes.cls))


def load_model(path: Path) -> tuple[UnifiedModel, dict[str, Any]]:
    """A trained model in eval mode and the checkpoint it came from.

    Raises UserError when the file is none, when it is not what the card beside it says, or when its tensors are not
    the model's.
    """
    content = checkpoint.load(path)  # first, since it leaves pipes and files without end alone
    verify_file(path)
    remedy = "take one that it has trained"
    try:
        # the classes decide the shapes of the last layer
        model = build(Settings(), checked_classes(content["classes"]))
        check_eval_size(content["settings"]["eval_size"])
        load_weights(model, content["model"])
        model.has_imagenet_trunk = content["initial_weights"] != NOTHING
    except Mismatch as error:
        raise UserError(f"{path} holds no model that this version can build ({error}): {remedy}.") from error
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise UserError(f"{path} holds no model that this version can build: {remedy}.") from error
    return place_model(model.eval(), "cpu"), content  # the caller moves it on


def checked_classes(values: dict[str, Any]) -> Classes:
    """The classes of a checkpoint. Raises ValueError, or as from_dict does, for anything else in their place."""
    classes = Classes.from_dict(values)
    for name in (*classes.det, *classes.cls):
        if not isinstance(name, str):
            raise ValueError("a class has no name")
    if len(classes.det) != len(classes.det_ids):
        raise ValueError("ids and names of classes differ in number")
    return classes


def check_eval_size(value: object) -> None:
    """Raise ValueError for anything but the side of an input, in pixels."""
    if not isinstance(value, int) or not 0 < value <= MAX_SIDE or value % MAX_STRIDE != 0:
        raise ValueError("the input has no size")
