"""The evidence: named sets of runs that differ in one thing each, run where they are missing, one JSON a run.

All runs of a seed share the segmentation of stage 1, which nothing that is compared here touches: they begin with a
copy of it, and with a replay buffer filled their own way.
"""

import os
import time
from collections.abc import Iterable
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import torch

from mtl_utils import checkpoint, files
from mtl_utils.evaluation import predict_set
from mtl_utils.experiments import bootstrap
from mtl_utils.experiments.plans import REPLAY, STUDIES, Plan
from mtl_utils.prepare.root import Root
from mtl_utils.run import Run, load_model
from mtl_utils.settings import Settings
from mtl_utils.stages import make_trainer, run_stage, store_exemplars
from mtl_utils.tasks import METRIC_NAMES, TASKS

POLL = 5  # seconds between two looks at a stage that another process trains


def run_study(what: str, settings: Settings, root: Root, seeds: list[int], folder: Path, results: Path) -> None:
    """Run what is missing of a study; of several processes (torchrun) each takes its share."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    choose_gpu()
    todo = [(plan, seed) for seed, plan in product(seeds, STUDIES[what])]
    todo = [(plan, seed) for plan, seed in todo if not result_path(results, plan, seed).exists()]
    for seed in sorted({seed for plan, seed in todo if shares_stage_1(replace(settings, **plan.overrides))}):
        share_stage_1(base_run(settings, seed, root, folder), rank)
    for number, (plan, seed) in enumerate(todo):
        if number % world == rank:
            print(f"{plan.name}, seed {seed} ({number + 1} of {len(todo)})", flush=True)
            run_plan(plan, base_run(settings, seed, root, folder), results)


def choose_gpu() -> None:
    """Let the processes of a machine take its GPUs in turn."""
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())


def result_path(results: Path, plan: Plan, seed: int) -> Path:
    """Where the JSON of a run lies."""
    return results / f"{plan.name}_seed{seed}.json"


def base_run(settings: Settings, seed: int, root: Root, folder: Path) -> Run:
    """The default run of a seed, whose stage 1 the others share."""
    return Run(replace(settings, seed=seed), folder / f"{REPLAY.name}_seed{seed}", root)


def share_stage_1(base: Run, rank: int) -> None:
    """Train the shared stage; the other processes wait for the first to do so."""
    if rank == 0:
        run_stage(base, "seg")
    while not base.finished("seg"):
        time.sleep(POLL)


def run_plan(plan: Plan, base: Run, results: Path) -> None:
    """Train one run's stages, measure it, write its JSON, and free the disk of what only training needs."""
    run = plan_run(plan, base)
    if shares_stage_1(run.settings) and not run.finished("seg"):
        take_stage_1(run, base)
    for task in run.settings.tasks[-1:] if run.settings.joint else run.settings.tasks:
        run_stage(run, task)
    files.write_json(result_path(results, plan, base.settings.seed), summary(plan, run), indent=None)
    for path in run.folder.glob("*.state.pt"):
        if path != base.path("seg", ".state.pt"):
            path.unlink()


def plan_run(plan: Plan, base: Run) -> Run:
    """The run of a plan, in a folder beside the base run's."""
    return Run(planned(plan, base), base.folder.with_name(f"{plan.name}_seed{base.settings.seed}"), base.root)


def planned(plan: Plan, base: Run) -> Settings:
    """The settings of a run; joint training lasts as many steps as the three stages together."""
    settings = replace(base.settings, **plan.overrides)
    if not settings.joint:
        return settings
    steps = {task: max(1, len(base.data(task, "train")) // settings.batch_size[task]) for task in TASKS}
    total, last = sum(steps[task] * settings.epochs[task] for task in TASKS), settings.tasks[-1]
    return replace(settings, epochs=settings.epochs | {last: round(total / steps[last])})


def shares_stage_1(settings: Settings) -> bool:
    """Whether a run begins with segmentation alone."""
    return settings.tasks[0] == "seg" and not settings.joint


def take_stage_1(run: Run, base: Run) -> None:
    """Begin a run with the segmentation of another, and with a replay buffer of its own."""
    run.folder.mkdir(parents=True, exist_ok=True)
    content = checkpoint.load(base.path("seg"))
    checkpoint.save(run.path("seg"), content | {"settings": run.settings.as_dict()})
    model = load_model(run.path("seg"))[0].to(run.device)
    trainer = make_trainer(run, "seg")
    store_exemplars(trainer, model)
    checkpoint.save(run.path("seg", ".state.pt"), {"buffer": trainer.buffer.state_dict()})
    files.write_json(run.path("seg", ".json"), base.result("seg") | {"key": run.key})


def summary(plan: Plan, run: Run) -> dict:
    """What a run says: the metric of every task after every stage, minutes, the final metrics on draws of images."""
    found = {task: run.result(task) for task in run.settings.tasks if run.path(task, ".json").exists()}
    drawn = {list(found)[-1], "seg"} if plan == REPLAY else {list(found)[-1]}  # its stage 1 is segmentation alone
    return {
        "name": plan.name,
        "overrides": plan.overrides,
        **run.key,
        "source": str(run.root),
        "device": run.device,
        "minutes": {task: result["minutes"] for task, result in found.items()},
        "metrics": {
            stage: {task: {k: m[k] for k in (METRIC_NAMES[task], "floor")} for task, m in result["metrics"].items()}
            for stage, result in found.items()
        },
        "val_curve": {task: [[e["epoch"], e["val"]] for e in r["history"] if "val" in e] for task, r in found.items()},
        "bootstrap_draws": {
            stage: bootstrap_stage(run, stage, found[stage]["metrics"]) for stage in found if stage in drawn
        },
    }


def bootstrap_stage(run: Run, stage: str, tasks: Iterable[str]) -> dict[str, list[int]]:
    """The metrics of a stage's model on every draw of val images, in units of 1 / intervals.UNIT."""
    model, draws = run.model(stage), {}
    for task in tasks:
        data = run.data(task, "val")
        values = bootstrap.bootstrap_metric(data, predict_set(model, data, run.settings.eval_size[task]))
        draws[task] = np.rint(values * bootstrap.STORED_SCALE).astype(int).tolist()
    return draws
