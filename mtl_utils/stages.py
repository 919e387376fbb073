"""The three stages: each starts from the one before, trains, evaluates and hands its results on through files.

A stage that was stopped continues after its last finished epoch; one that is finished is read from its files.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mtl_utils import checkpoint, environment, files, processes
from mtl_utils.evaluation import TaskMetrics, evaluate
from mtl_utils.files import UserError
from mtl_utils.model import UnifiedModel, count_parameters, fold_batchnorm, mean_over_content, place_model
from mtl_utils.provenance import provenance
from mtl_utils.remedies.build import make_remedies
from mtl_utils.replay import ReplayBuffer, collect_head_features
from mtl_utils.run import Run, RunMetrics, StageResult, build, load_model, read_metrics
from mtl_utils.settings import Settings
from mtl_utils.tasks import TASK_NAMES, TASKS, Task, learned_by, shared_classes, stage_number
from mtl_utils.training import Trainer, train
from mtl_utils.weights import load_starting_weights, load_weights

FIRST_NOTEBOOK = 3  # the notebook of stage 1; those of the other stages follow it

# what assert_learned expects of a stage, in any profile
MAX_LOSS_RATIO = 0.93  # of a task's last to its first training loss: an epoch without learning differs by less
MIN_FLOOR_RATIO = 1.25  # times its floor that a task must score after its stage
UNIFORM_LOSS = math.log(10)  # classification's cross-entropy where all ten classes are equally likely


# ---- one stage after the other


def run_stage(run: Run, task: Task, after_epoch: Callable[[Trainer], None] | None = None) -> StageResult:
    """Train one stage, or continue it, or load it when it is finished; returns what its JSON holds.

    A predecessor that is missing is named and trained first. `after_epoch` is called after every epoch, when the epoch
    is already saved. Raises UserError when a file of the data is broken, when the folder holds a stage with other
    settings, data or starting weights, when another process trains in it, and when the loss is no longer finite.
    """
    result = run.result(task)
    if result is not None and run.finished(task):
        if processes.is_first() and not metrics_are_current(run):  # a process was killed between the two files
            write_metrics(run)
        return result  # finished work is never repeated
    if not processes.is_first():
        processes.wait_for_all()  # until the data are checked and the folder is held
        return train_stage(run, task, None)
    run.check_data()  # of all tasks: a fault in the last stage's data is better found now than after hours
    with run.locked():
        # nobody else writes here now
        files.remove_parts(run.folder)
        processes.wait_for_all()
        return train_stage(run, task, after_epoch)


def train_stage(run: Run, task: Task, after_epoch: Callable[[Trainer], None] | None) -> StageResult:
    """Train or continue a stage, and those before it that are missing, in a folder that this process holds."""
    for earlier in predecessors(run.settings, task):
        if not run.finished(earlier):
            name = run.path(earlier).name
            notebook = FIRST_NOTEBOOK + stage_number(earlier) - 1
            print(f"{name} is missing (notebook {notebook:02d} makes it): training it first.")
            train_stage(run, earlier, None)

    def save_and_call(trainer: Trainer) -> None:
        if not processes.is_first():
            return
        save_epoch(run, trainer)
        if after_epoch is not None:
            after_epoch(trainer)

    trainer = make_trainer(run, task)
    train(trainer, save_and_call)
    if processes.is_first():
        finish_stage(run, trainer)
    processes.wait_for_all()
    result = run.result(task)  # as every process reads it
    assert result is not None
    return result


def open_results(run: Run) -> tuple[RunMetrics, dict[Task, UnifiedModel]]:
    """The metrics.json of a run and the models after its stages; missing stages are trained first.

    While nothing of the run is there, the committed run is shown: its metrics and its final model.
    """
    if not run.has_started and files.COMMITTED_WEIGHTS.exists():
        print(f"{run.folder.name}/ holds no stage yet: what follows is the run that came with the project")
        final_model, _ = load_model(files.COMMITTED_WEIGHTS)
        return read_metrics(files.COMMITTED_METRICS), {"cls": place_model(final_model, run.device)}
    for task in TASKS:
        run_stage(run, task)
    models = {task: run.model(task) for task in TASKS}
    return read_metrics(run.folder / "metrics.json"), models


def predecessors(settings: Settings, task: Task) -> list[Task]:
    """The stages that must be finished before a stage; joint training has only one."""
    return [] if settings.joint else settings.earlier(task)


# ---- the beginning of a stage


def make_trainer(run: Run, task: Task) -> Trainer:
    """A trainer at the beginning of a stage, or where the stage was stopped."""
    model, buffer = initial_state(run, task)
    # before any training: the remedies copy the model as it is now, for a teacher or an anchor
    remedies = make_remedies(run.settings, model, task, buffer)
    trainer = Trainer(model, run.data(task, "train"), buffer, run.settings, run.device, remedies)
    state = run.path(task, ".state.pt")
    if run.result(task) is not None and state.exists():
        trainer.load_state_dict(load_state(state))
        print(f"continuing {TASK_NAMES[task]} after epoch {len(trainer.history)}")
    elif processes.is_first():
        run.path(task, ".json").unlink(missing_ok=True)  # without a state there is nothing to continue
    return trainer


def load_state(path: Path) -> dict[str, Any]:
    """What a stage needs to continue. Raises UserError where its file is damaged or an older version wrote it."""
    state = checkpoint.load(path)
    if "exemplars" not in state["buffer"]:
        raise UserError(f"{path} was written by an older version: delete the files of its run and train again.")
    return state


def initial_state(run: Run, task: Task) -> tuple[UnifiedModel, ReplayBuffer]:
    """The model and the replay buffer that a stage starts with: those of the stage before, or new ones."""
    before = predecessors(run.settings, task)
    if before:
        return previous_state(run, before[-1], task)
    model = build(run.settings, run.classes)  # random weights, of which the starting weights replace what they cover
    load_starting_weights(model, run.starting_weights)
    buffer = ReplayBuffer(run.settings.buffer_size)
    for other in run.settings.earlier(task):  # joint training: all tasks' images are there from the beginning
        generator = torch.Generator().manual_seed(run.settings.seed)
        buffer.store(run.data(other, "train"), generator)
    return model, buffer


def previous_state(run: Run, previous: Task, task: Task) -> tuple[UnifiedModel, ReplayBuffer]:
    """The model and the replay buffer that a finished stage hands on to the stage of `task`."""
    model, _ = load_model(run.path(previous))  # the best epoch's averaged weights, not the last ones
    state = load_state(run.path(previous, ".state.pt"))
    buffer = ReplayBuffer(run.settings.buffer_size)
    buffer.load_state_dict(state["buffer"])
    # what segmentation has learned of a class is a better start than random numbers
    follows_segmentation = task == "det" and "seg" in run.settings.earlier(task)
    if follows_segmentation and run.settings.copy_shared_classes:
        model.head.copy_segmentation_classes(shared_classes(run.classes.det))
    return model, buffer


# ---- after an epoch


def save_epoch(run: Run, trainer: Trainer) -> None:
    """After an epoch: evaluate when it is time, then put state and history on the disk."""
    task = trainer.task
    epochs = len(trainer.history)
    if trainer.finished or epochs % run.settings.eval_every == 0:
        metrics = evaluate_tasks(run, trainer.ema.module, task)  # the averaged weights, since those are handed on
        trainer.history[-1].val = values_of(metrics)
    # the state first: after a crash between the two the stage continues from it, the JSON one epoch behind
    checkpoint.save(run.path(task, ".state.pt"), trainer.state_dict())
    files.write_json(run.path(task, ".json"), StageResult(run.key(task), trainer.history).as_dict())


def evaluate_tasks(run: Run, model: nn.Module, task: Task) -> dict[Task, TaskMetrics]:
    """Metrics of a model on val for the task of a stage and all before it."""
    datasets = [run.data(learned, "val") for learned in (*run.settings.earlier(task), task)]
    return evaluate(model, datasets, run.settings.eval_size)


def metrics_before(run: Run, task: Task) -> dict[Task, TaskMetrics]:
    """What the network scores in all tasks before any stage, by its starting weights alone; of the first stage only."""
    if predecessors(run.settings, task):
        return {}
    model, _ = initial_state(run, task)
    datasets = [run.data(each, "val") for each in run.settings.tasks]
    return evaluate(place_model(model, run.device), datasets, run.settings.eval_size)


def values_of(metrics: dict[Task, TaskMetrics]) -> dict[Task, float]:
    """The metric that judges each task."""
    return {task: result.value for task, result in metrics.items()}


# ---- the end of a stage


def finish_stage(run: Run, trainer: Trainer) -> StageResult:
    """After the last epoch: evaluate the best model, fill the buffer, save both, and report the stage."""
    assert trainer.best is not None, "the last epoch at least has weak augmentation, so it is the best of one or more"
    task = trainer.task
    model = best_model(run, trainer)
    metrics = evaluate_tasks(run, model, task)
    if task != run.settings.tasks[-1]:  # after the last stage nothing is replayed
        store_exemplars(trainer, model)
    result = StageResult(
        key=run.key(task),
        history=trainer.history,
        best_epoch=trainer.best.epoch,
        minutes=sum(record.seconds for record in trainer.history) / 60,
        metrics=metrics,  # of the best model, not of the last epoch
        before=metrics_before(run, task),
        provenance=provenance(),
    )
    # a stage counts as finished only when its JSON has metrics: a crash before that leaves one that is finished anew
    checkpoint.save(run.path(task, ".state.pt"), trainer.state_dict())
    checkpoint.save(run.path(task), model_file(run, task, model, metrics))
    files.write_json(run.path(task, ".json"), result.as_dict())
    write_metrics(run)
    return result


def best_model(run: Run, trainer: Trainer) -> UnifiedModel:
    """The model that a stage hands on, as it will be read from its file: rounded to half precision."""
    assert trainer.best is not None, "no epoch is finished"
    model = build(run.settings, run.classes)
    load_weights(model, trainer.best.weights)
    finalize_model(model, run.settings)  # before rounding, since folding multiplies weights
    rounded = checkpoint.halved(model.state_dict())
    load_weights(model, rounded)
    return place_model(model, run.device)


def finalize_model(model: UnifiedModel, settings: Settings) -> UnifiedModel:
    """What is done to a model when a stage is over: BatchNorm is folded away, so that no later stage can shift it."""
    if settings.fold_batchnorm:
        fold_batchnorm(model)
    return model.eval()


def store_exemplars(trainer: Trainer, model: UnifiedModel) -> None:
    """Fill the replay buffer from a finished stage, with what the remedies keep; `model` is what the stage hands on."""
    settings, task = trainer.settings, trainer.task
    features = None
    if settings.exemplar_selection == "herding":
        samples, size = trainer.dataset.samples, settings.train_size[task]
        maps, contents = collect_head_features(model, samples, size, trainer.device)  # (N, input + head, h, w), (N, 4)
        features = mean_over_content(maps, contents)  # (N, input + head)
    generator = torch.Generator().manual_seed(settings.seed)
    trainer.buffer.store(trainer.dataset, generator, settings.exemplar_selection, features)
    for remedy in trainer.remedies:
        remedy.after_stage(trainer, model)


def model_file(run: Run, task: Task, model: UnifiedModel, metrics: dict[Task, TaskMetrics]) -> dict[str, Any]:
    """The content of a stage's .pt file: all that is needed to use the model and to know where it comes from."""
    return {
        "classes": run.classes.as_dict(),
        "settings": run.settings.as_dict(),
        "initial_weights": run.starting_weights.label,
        "model": checkpoint.halved(model.state_dict()),
        "stage": task,
        "val": values_of(metrics),
    }


def metrics_are_current(run: Run) -> bool:
    """Whether metrics.json is there and no older than the results of any stage."""
    path = run.folder / "metrics.json"
    if not path.exists():
        return False
    # a stage's own JSON is written before it
    written = path.stat().st_mtime
    return all(result.stat().st_mtime <= written for result in run.folder.glob("stage*.json"))


def write_metrics(run: Run) -> None:
    """metrics.json: the results of the stages finished so far, from which all tables and figures are made."""
    stages = {}
    for task in TASKS:
        result = run.result(task)
        if result is not None and run.finished(task):
            stages[task] = result
    last = list(stages)[-1]
    metrics = RunMetrics(
        key=run.key(last),
        source=str(run.root),
        device=run.device,
        parameters=count_parameters(build(run.settings, run.classes)),  # BatchNorm's included, as before folding
        written=time.strftime("%Y-%m-%d"),
        classes=run.classes,
        stages=stages,
        left_out=run.left_out() if environment.skip_broken() else {},
    )
    files.write_json(run.folder / "metrics.json", metrics.as_dict())


# ---- a live check for the notebooks


def assert_learned(result: StageResult, task: Task) -> None:
    """Assert of a finished stage what a broken one would miss, in any profile: a sentence names what is missing."""
    first, last = result.history[0].loss, result.history[-1].loss
    *earlier_tasks, _ = learned_by(task)
    # a task that is replayed has a loss above 0 in every epoch
    for earlier in earlier_tasks:
        replayed = last.get(earlier, 0.0) > 0
        assert replayed, f"{earlier} was not replayed: see Settings.replay_per_task and Settings.replay_weight"
    assert last[task] < MAX_LOSS_RATIO * first[task], f"{task}: the training loss did not fall, so nothing was learned"
    if task == "cls":
        assert last["cls"] < UNIFORM_LOSS, "cls: the training loss is no better than guessing among ten"
    for name, metrics in result.metrics.items():
        assert metrics.value > MIN_FLOOR_RATIO * metrics.floor, f"{name} scores no better than its floor"
