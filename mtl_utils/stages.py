"""The three stages: each starts from the one before, trains, evaluates and hands its results on through files."""

import math
import time
from collections.abc import Callable

import torch

from mtl_utils import checkpoint, files, forgetting, weights
from mtl_utils.evaluation import evaluate
from mtl_utils.files import UserError
from mtl_utils.model import UnifiedModel, count_parameters, fold_batchnorm
from mtl_utils.remedies.build import make_remedies
from mtl_utils.remedies.ewc import task_fisher
from mtl_utils.replay import ReplayBuffer, collect_head_features
from mtl_utils.run import Run, build, load_model
from mtl_utils.settings import Settings
from mtl_utils.tasks import METRIC_NAMES, TASK_NAMES, TASKS, shared_classes
from mtl_utils.training import Trainer, train
from mtl_utils.weights import load_weights


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
    train(trainer, lambda t: (save_epoch(run, t), after_epoch and after_epoch(t)))
    return finish_stage(run, trainer)


def open_results(run: Run) -> tuple[dict, dict[str, UnifiedModel]]:
    """The metrics.json of a run and the models after its stages; missing stages are trained first.

    While nothing of the run is there, it is the committed run that is shown: its metrics and its final model.
    """
    if not run.has_started and files.COMMITTED_WEIGHTS.exists():
        print(f"{run.folder.name}/ holds no stage yet: what follows is the run that came with the project")
        return forgetting.read_metrics(files.COMMITTED_METRICS), {
            "cls": load_model(files.COMMITTED_WEIGHTS)[0].to(run.device)
        }
    for task in TASKS:
        run_stage(run, task)
    return forgetting.read_metrics(run.folder / "metrics.json"), {task: run.model(task) for task in TASKS}


def predecessors(settings: Settings, task: str) -> list[str]:
    """The stages that must be finished before a stage; joint training has only one."""
    return [] if settings.joint else settings.earlier(task)


def make_trainer(run: Run, task: str) -> Trainer:
    """A trainer at the beginning of a stage, or where the stage was stopped."""
    model, buffer = initial_state(run, task)
    remedies = make_remedies(run.settings, model, task, buffer.fisher)
    trainer = Trainer(model, run.data(task, "train"), buffer, run.settings, run.device, remedies)
    if run.result(task) and run.path(task, ".state.pt").exists():
        trainer.load_state_dict(checkpoint.load(run.path(task, ".state.pt")))
        print(f"continuing {TASK_NAMES[task]} after epoch {len(trainer.history)}")
    else:
        run.path(task, ".json").unlink(missing_ok=True)  # without a state there is nothing to continue
    return trainer


def initial_state(run: Run, task: str) -> tuple[UnifiedModel, ReplayBuffer]:
    """The model and the replay buffer that a stage starts with: those of the stage before, or new ones."""
    buffer = ReplayBuffer(run.settings.buffer_size)
    if before := predecessors(run.settings, task):
        model, _ = load_model(run.path(before[-1]))
        buffer.load_state_dict(checkpoint.load(run.path(before[-1], ".state.pt"))["buffer"])
        if task == "det" and "seg" in before:
            model.head.copy_segmentation_classes(shared_classes(run.classes.det))
        return model, buffer
    model = build(run.settings, run.classes)
    weights.load_starting_weights(model, run.classes.cls)
    for other in run.settings.earlier(task):  # joint training: everything is at hand from the beginning
        buffer.store(run.data(other, "train"), torch.Generator().manual_seed(run.settings.seed))
    return model, buffer


def save_epoch(run: Run, trainer: Trainer) -> None:
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
    files.write_json(run.path(trainer.task, ".json"), {"key": run.key, "history": trainer.history})


def evaluate_all(run: Run, trainer: Trainer) -> dict[str, dict]:
    """Metrics of the averaged weights on val for every task learned so far."""
    return evaluate_tasks(run, trainer.ema.module, trainer.task)


def evaluate_tasks(run: Run, model: torch.nn.Module, task: str) -> dict[str, dict]:
    """Metrics of a model on val for the task of a stage and all before it."""
    learned = [*run.settings.earlier(task), task]
    return {t: evaluate(model, run.data(t, "val"), run.settings.eval_size[t]) for t in learned}


def finish_stage(run: Run, trainer: Trainer) -> dict:
    """After the last epoch: evaluate the best model, fill the buffer, save both, and report the stage."""
    task, model = trainer.task, best_model(run, trainer)
    metrics = evaluate_tasks(run, model, task)
    if task != run.settings.tasks[-1]:
        store_exemplars(trainer, model)
    result = {
        "key": run.key,
        "history": trainer.history,
        "best_epoch": trainer.best["epoch"],
        "minutes": sum(entry["seconds"] for entry in trainer.history) / 60,
        "metrics": metrics,
    }
    common = {
        "classes": run.classes.as_dict(),
        "settings": run.settings.as_dict(),
        "initial_weights": run.key["initial_weights"],
    }
    scores = {t: m[METRIC_NAMES[t]] for t, m in metrics.items()}
    checkpoint.save(run.path(task, ".state.pt"), trainer.state_dict())
    weights = checkpoint.halved(model.state_dict())
    checkpoint.save(run.path(task), common | {"model": weights, "stage": task, "val": scores})
    files.write_json(run.path(task, ".json"), result)
    write_metrics(run)
    return result


def best_model(run: Run, trainer: Trainer) -> UnifiedModel:
    """The model that a stage hands on, as it will be read from its file: rounded to half precision."""
    model = build(run.settings, run.classes)
    load_weights(model, trainer.best["model"])
    load_weights(model, checkpoint.halved(finalize_model(model, run.settings).state_dict()))
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
    files.write_json(run.folder / "metrics.json", about | {"classes": run.classes.as_dict(), "stages": stages})


def store_exemplars(trainer: Trainer, model: UnifiedModel) -> None:
    """Fill the replay buffer from a finished stage; `model` is what the stage hands on."""
    settings, task, buffer = trainer.settings, trainer.task, trainer.buffer
    features = None
    if settings.exemplar_selection == "herding":
        size = settings.train_size[task]
        features = collect_head_features(model, trainer.dataset.samples, task, size, trainer.device).mean((2, 3))
    buffer.store(trainer.dataset, torch.Generator().manual_seed(settings.seed), settings.exemplar_selection, features)
    if settings.derpp_weight and task in buffer.samples:
        with torch.inference_mode():
            hidden = collect_head_features(
                model, buffer.samples[task], task, settings.train_size[task], trainer.device
            ).to(trainer.device)
            buffer.stored_logits[task] = model.head[-1](hidden).half().cpu()
    if settings.ewc_weight:
        for name, value in task_fisher(trainer, model).items():
            buffer.fisher[name] = buffer.fisher.get(name, 0) + value.cpu()


def finalize_model(model: UnifiedModel, settings: Settings) -> UnifiedModel:
    """What is done to a model when a stage is over: BatchNorm is folded away, so that no later stage can shift it."""
    if settings.fold_batchnorm:
        fold_batchnorm(model)
    return model.eval()


MAX_LOSS_RATIO = (
    0.93  # part of its first training loss that a task's last may be: an epoch without learning differs by less
)
MIN_FLOOR_RATIO = 1.25  # times its floor that a task must score after its stage


def assert_learned(result: dict, task: str) -> None:
    """Assert of a finished stage what a broken one would miss, in any profile: a sentence says what is missing."""
    first, last = (result["history"][i]["loss"] for i in (0, -1))
    for earlier in TASKS[: TASKS.index(task)]:
        assert last.get(earlier, 0) > 0, (
            f"{earlier} was not replayed: see Settings.replay_per_task and Settings.replay_weight"
        )
    assert last[task] < MAX_LOSS_RATIO * first[task], f"{task}: the training loss did not fall, so nothing was learned"
    assert task != "cls" or last[task] < math.log(10), "cls: the training loss is no better than guessing among ten"
    for name, values in result["metrics"].items():
        assert values[METRIC_NAMES[name]] > MIN_FLOOR_RATIO * values["floor"], f"{name} scores no better than its floor"
