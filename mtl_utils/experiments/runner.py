"""Runs what is missing of a study: named sets of runs that differ in one thing each; every run leaves one JSON.

The runs of a seed share the segmentation of stage 1 unless they differ in it: they begin with a copy of it, and with a
replay buffer filled their own way.
"""

import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from mtl_utils import checkpoint, environment, files, processes
from mtl_utils.evaluation import predict_sets
from mtl_utils.experiments.bootstrap import bootstrap_metric, stored_draws
from mtl_utils.experiments.costs import stored_bytes
from mtl_utils.experiments.outcomes import Outcomes, collect_outcomes
from mtl_utils.experiments.plans import REPLAY, STUDIES, Plan
from mtl_utils.experiments.results import RunSummary, ValCurve, outcomes_path, read_result
from mtl_utils.files import UserError
from mtl_utils.model import place_model
from mtl_utils.prepare.root import Root
from mtl_utils.run import InUse, Run, RunKey, StageResult, load_model
from mtl_utils.settings import Settings
from mtl_utils.stages import make_trainer, run_stage, store_exemplars
from mtl_utils.tasks import TASKS, Task

POLL = 5  # seconds between two checks of a stage that another process trains


# ---- a study


class Shard(NamedTuple):
    """The share of one of several processes: of every `total` runs of a study, the one of this number."""

    number: int  # from 0
    total: int


def shard_of_process() -> Shard:
    """The share of this process where torchrun started several; else there is one."""
    return Shard(environment.process_rank(), environment.process_count())


def run_study(
    what: str,
    settings: Settings,
    root: Root,
    seeds: list[int],
    folder: Path,
    results: Path,
    shard: Shard | None = None,
) -> None:
    """Run what is missing of a study; of several processes (torchrun, or the jobs of an array) each takes its share.

    what: one of STUDIES. folder: holds the runs. results: holds their JSON files. shard: None for that of torchrun.
    """
    shard = shard or shard_of_process()
    processes.choose_gpu()
    missing = missing_runs(what, seeds, settings, root, folder, results)
    own = [run for run in missing if run in share(what, seeds, shard)]
    for seed in seeds_to_share(own, settings):
        share_stage_1(base_run(settings, seed, root, folder))
    for number, (plan, seed) in enumerate(own, start=1):
        print(f"{plan.name}, seed {seed} ({number} of {len(own)})", flush=True)
        run_plan(plan, base_run(settings, seed, root, folder), results)


def share(what: str, seeds: list[int], shard: Shard) -> list[tuple[Plan, int]]:
    """The runs of a study that belong to a process, whether they are done or not: jobs may start at different times."""
    runs: list[tuple[Plan, int]] = []
    for seed in seeds:
        runs += [(plan, seed) for plan in STUDIES[what]]
    return runs[shard.number :: shard.total]


def missing_runs(
    what: str, seeds: list[int], settings: Settings, root: Root, folder: Path, results: Path
) -> list[tuple[Plan, int]]:
    """The runs of a study, each a plan and a seed, that have no JSON yet.

    Raises UserError for a JSON that was made with other settings, data or starting weights: it is not taken for done.
    """
    missing = []
    for seed in seeds:
        base = base_run(settings, seed, root, folder)
        for plan in STUDIES[what]:
            path = result_path(results, plan, seed)
            if path.exists():
                verify_result(path, plan, base)
            else:
                missing.append((plan, seed))
    return missing


def verify_result(path: Path, plan: Plan, base: Run) -> None:
    """Raise UserError where a stored result is not that of a plan with this base run."""
    stored = read_result(path)
    settings = planned_settings(plan, base)
    fingerprints = {task: base.data_fingerprints[task] for task in settings.tasks}
    wanted = RunKey(settings, fingerprints, base.starting_weights.label)
    found = RunKey(stored.settings, stored.data_fingerprints, stored.initial_weights)
    other = wanted.difference(found)
    if other is not None:
        raise UserError(f"{path} was made with other {other}: move it to another folder, then run the study again.")


def result_path(results: Path, plan: Plan, seed: int) -> Path:
    """Where the JSON of a run lies."""
    return results / f"{plan.name}_seed{seed}.json"


# ---- the stage that the runs of a seed share


def base_run(settings: Settings, seed: int, root: Root, folder: Path) -> Run:
    """The default run of a seed, whose stage 1 the others share."""
    return Run(replace(settings, seed=seed), folder / f"{REPLAY.name}_seed{seed}", root)


def seeds_to_share(missing: list[tuple[Plan, int]], settings: Settings) -> list[int]:
    """The seeds of which some missing run begins with the shared stage."""
    seeds = set()
    for plan, seed in missing:
        if shares_stage_1(replace(settings, **plan.overrides), settings):
            seeds.add(seed)
    return sorted(seeds)


def shares_stage_1(settings: Settings, base: Settings) -> bool:
    """Whether a run begins with segmentation alone, learned as in the base run."""
    begins_alone = settings.tasks[0] == "seg" and not settings.joint
    same_trunk = settings.freeze_trunk == base.freeze_trunk
    same_folding = settings.fold_batchnorm == base.fold_batchnorm
    return begins_alone and same_trunk and same_folding


def share_stage_1(base: Run) -> None:
    """Train the shared stage, or wait while another process does so."""
    while not base.finished("seg"):
        try:
            run_stage(base, "seg")
        except InUse:
            time.sleep(POLL)


def copy_stage_1(run: Run, base: Run) -> None:
    """Begin a run with the segmentation of another, and with a replay buffer of its own."""
    result = base.result("seg")
    assert result is not None, "the shared stage is trained first"
    run.folder.mkdir(parents=True, exist_ok=True)
    content = checkpoint.load(base.path("seg"))
    checkpoint.save(run.path("seg"), content | {"settings": run.settings.as_dict()})
    model, _ = load_model(run.path("seg"))
    place_model(model, run.device)
    trainer = make_trainer(run, "seg")
    store_exemplars(trainer, model)
    checkpoint.save(run.path("seg", ".state.pt"), {"buffer": trainer.buffer.state_dict()})
    # the JSON last: the stage is finished when it is there
    own_result = replace(result, key=run.key("seg"))
    files.write_json(run.path("seg", ".json"), own_result.as_dict())


# ---- one run


def run_plan(plan: Plan, base: Run, results: Path) -> None:
    """Train one run's stages, measure it, write its JSON, and free the disk of what only training needs."""
    run = planned_run(plan, base)
    settings = run.settings
    if shares_stage_1(settings, base.settings) and not run.finished("seg"):
        copy_stage_1(run, base)
    stages = settings.tasks[-1:] if settings.joint else settings.tasks
    for task in stages:
        run_stage(run, task)
    write_result(plan, run, result_path(results, plan, base.settings.seed))
    for path in run.folder.glob("*.state.pt"):
        if path != base.path("seg", ".state.pt"):
            path.unlink()


def planned_run(plan: Plan, base: Run) -> Run:
    """The run of a plan, in a folder beside the base run's."""
    folder = base.folder.with_name(f"{plan.name}_seed{base.settings.seed}")
    return Run(planned_settings(plan, base), folder, base.root)


def planned_settings(plan: Plan, base: Run) -> Settings:
    """The settings of a run; joint training lasts as many steps as the three stages together."""
    settings = replace(base.settings, **plan.overrides)
    if not settings.joint:
        return settings
    steps = {}  # of one epoch
    total = 0
    for task in TASKS:
        images = len(base.data(task, "train"))
        steps[task] = max(1, images // settings.batch_size[task])
        total += steps[task] * settings.epochs[task]
    last = settings.tasks[-1]
    epochs = settings.epochs | {last: round(total / steps[last])}
    return replace(settings, epochs=epochs)


def write_result(plan: Plan, run: Run, path: Path) -> None:
    """Write the summary of a finished run, and beside it what the model predicted for each image."""
    outcomes: dict[Task, dict[Task, Outcomes]] = {}
    last = list(finished_stages(run))[-1]
    # the default's stage 1 is segmentation alone, a baseline
    for stage in ("seg", last) if plan == REPLAY else (last,):
        outcomes[stage] = stage_outcomes(run, stage)
    files.write_json(outcomes_path(path), outcomes, indent=None)
    # last, since a run counts as done when its summary is there
    files.write_json(path, make_summary(plan, run, outcomes).as_dict(), indent=None)


def make_summary(plan: Plan, run: Run, outcomes: dict[Task, dict[Task, Outcomes]]) -> RunSummary:
    """The summary of a finished run: metrics after every stage, minutes, and metrics on the resamples.

    outcomes: by stage and task, of the stages whose metrics are resampled.
    """
    stages = finished_stages(run)
    first = next(iter(stages.values()))
    last = list(stages)[-1]
    draws: dict[Task, dict[Task, list[int]]] = {}
    for stage, of_tasks in outcomes.items():
        draws[stage] = {task: draws_of(run, task, of_task) for task, of_task in of_tasks.items()}
    return RunSummary(
        name=plan.name,
        overrides=plan.overrides,
        settings=run.settings,
        data_fingerprints=run.data_fingerprints,
        initial_weights=run.starting_weights.label,
        source=str(run.root),
        device=run.device,
        provenance=stages[last].provenance,
        minutes={stage: result.minutes for stage, result in stages.items()},
        stored_bytes=stored_bytes(run, last),
        before={task: result.value for task, result in first.before.items()},
        metrics={stage: result.metrics for stage, result in stages.items()},
        val_curve={stage: val_curve(result) for stage, result in stages.items()},
        bootstrap_draws=draws,
    )


def finished_stages(run: Run) -> dict[Task, StageResult]:
    """The results of the stages that a run has, in order; joint training has one."""
    stages = {}
    for task in run.settings.tasks:
        result = run.result(task)
        if result is not None:
            stages[task] = result
    return stages


def val_curve(result: StageResult) -> ValCurve:
    """The epochs of a stage with an evaluation, and the metrics then."""
    return [(record.epoch, record.val) for record in result.history if record.val is not None]


def stage_outcomes(run: Run, stage: Task) -> dict[Task, Outcomes]:
    """What a stage's model predicted for each val image, by task."""
    model = run.model(stage)
    learned = [*run.settings.earlier(stage), stage]
    datasets = [run.data(task, "val") for task in learned]
    predictions = predict_sets(model, datasets, run.settings.eval_size)
    outcomes = {}
    for dataset in datasets:
        outcomes[dataset.task] = collect_outcomes(dataset, predictions[dataset.task])
    return outcomes


def draws_of(run: Run, task: Task, outcomes: Outcomes) -> list[int]:
    """A task's metric on every resample of val images, as it is stored."""
    images = len(run.data(task, "val"))
    return stored_draws(bootstrap_metric(task, outcomes, images))
