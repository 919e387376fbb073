"""Studies: what is shared, skipped and stored."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from mtl_utils import processes, weights
from mtl_utils import run as run_module
from mtl_utils.checkpoint import load
from mtl_utils.experiments import plans, runner
from mtl_utils.experiments import results as results_module
from mtl_utils.experiments.plans import Plan
from mtl_utils.files import UserError
from mtl_utils.plots import pictures, studies
from mtl_utils.prepare.root import Root
from mtl_utils.run import load_model
from mtl_utils.settings import PROFILES

SETTINGS = replace(
    PROFILES["smoke"],
    train_size=dict(seg=64, det=64, cls=32),
    eval_size=64,
    epochs=dict(seg=2, det=1, cls=1),
    batch_size=dict(seg=2, det=2, cls=2),
    buffer_size=6,
    replay_per_task=2,
)
PLANS = [
    Plan("replay"),
    Plan("no-replay", {"replay_per_task": 0}),
    Plan("few", {"buffer_size": 2, "exemplar_selection": "random"}),
    Plan("single-det", {"tasks": ["det"]}),
    Plan("joint", {"joint": True}),
    Plan("naive", plans.NAIVE.overrides),
]


@pytest.fixture(autouse=True)
def without_weights(monkeypatch):
    monkeypatch.setenv(weights.VARIABLE, weights.NOTHING)


@pytest.fixture(scope="module")
def done(tiny_root, tmp_path_factory):
    """The folder of a finished study; runs/ and results/ lie in it."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(weights.VARIABLE, weights.NOTHING)
        patch.setitem(plans.STUDIES, "baselines", PLANS)
        run_it(tiny_root, folder)
    return folder


def run_it(root, folder):
    runner.run_study("baselines", SETTINGS, Root(root, "--data-root"), [0], folder / "runs", folder / "results")


def result(folder, name):
    return json.loads((folder / "results" / f"{name}_seed0.json").read_text())


@pytest.mark.slow
def test_every_run_leaves_a_summary(done):
    assert {run.name for run in results_module.read_results(done / "results")} == {plan.name for plan in PLANS}
    summary = result(done, "replay")
    assert list(summary["metrics"]) == ["seg", "det", "cls"]
    assert list(summary["metrics"]["cls"]) == ["seg", "det", "cls"]
    assert {stage: list(draws) for stage, draws in summary["bootstrap_draws"].items()} == {
        "seg": ["seg"],
        "cls": ["seg", "det", "cls"],
    }
    assert all(len(values) == 1000 for draws in summary["bootstrap_draws"].values() for values in draws.values())
    assert set(summary["minutes"]) == {"seg", "det", "cls"}
    assert summary["stored_bytes"] > 0 and result(done, "no-replay")["stored_bytes"] == 0
    outcomes = json.loads((done / "results" / "images" / "replay_seed0.json").read_text())
    assert {stage: list(of_tasks) for stage, of_tasks in outcomes.items()} == {
        "seg": ["seg"],
        "cls": ["seg", "det", "cls"],
    }
    assert list(summary["before"]) == ["seg", "det", "cls"]
    assert result(done, "single-det")["before"].keys() == {"det"}
    assert result(done, "joint")["before"] == summary["before"], "the same network to begin with"


@pytest.mark.slow
def test_summaries_are_small_and_name_no_folder(done):
    for path in (done / "results").glob("*.json"):
        text = path.read_text()
        assert len(text) < 60_000 and str(done) not in text


@pytest.mark.slow
def test_stage_1_is_shared_and_the_replay_buffer_is_not(done):
    runs = [done / "runs" / f"{name}_seed0" for name in ("replay", "no-replay", "few")]
    states = [load_model(run / "stage1_segmentation.pt")[0].state_dict() for run in runs]
    assert all(torch.equal(value, other[name]) for other in states[1:] for name, value in states[0].items())
    assert result(done, "few")["metrics"]["seg"] == result(done, "replay")["metrics"]["seg"]
    assert load(runs[2] / "stage1_segmentation.pt")["settings"]["buffer_size"] == 2


@pytest.mark.slow
def test_plain_fine_tuning_has_a_first_stage_of_its_own_that_is_not_folded(done):
    own = load_model(done / "runs" / "naive_seed0" / "stage1_segmentation.pt")[0].state_dict()
    shared = load_model(done / "runs" / "replay_seed0" / "stage1_segmentation.pt")[0].state_dict()
    assert any(name.endswith("running_mean") for name in own)
    assert not any(name.endswith("running_mean") for name in shared)
    assert result(done, "naive")["settings"]["copy_shared_classes"] is False


@pytest.mark.slow
def test_tasks_alone_and_joint_training(done):
    assert list(result(done, "single-det")["metrics"]) == ["det"]
    joint = result(done, "joint")
    assert list(joint["metrics"]) == ["cls"] and set(joint["bootstrap_draws"]["cls"]) == {"seg", "det", "cls"}
    # 3 steps a stage-1 epoch of 6 images, 3 in stage 2, 5 in stage 3: 14 in all, of which an epoch has 5
    assert joint["settings"]["epochs"]["cls"] == 3


@pytest.mark.slow
def test_what_is_there_is_not_run_again(done, tiny_root, monkeypatch):
    monkeypatch.setitem(plans.STUDIES, "baselines", PLANS)
    monkeypatch.setattr(runner, "run_stage", lambda *_: pytest.fail("trained again"))
    run_it(tiny_root, done)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "value", "word"),
    [
        ("data_fingerprints", {"seg": "0", "det": "0", "cls": "0"}, "data"),
        ("initial_weights", "other.pt 0123", "starting weights"),
        ("settings", None, "settings"),
    ],
)
def test_a_result_of_something_else_is_not_taken_for_done(key, value, word, done, tiny_root, tmp_path, monkeypatch):
    shutil.copytree(done, tmp_path / "study")
    path = tmp_path / "study" / "results" / "few_seed0.json"
    stored = json.loads(path.read_text())
    stored[key] = value or stored["settings"] | {"weight_decay": 0.5}
    path.write_text(json.dumps(stored))
    monkeypatch.setitem(plans.STUDIES, "baselines", PLANS)
    monkeypatch.setattr(runner, "run_stage", lambda *_: pytest.fail("trained again"))
    with pytest.raises(UserError, match=f"few_seed0.json was made with other {word}: move it to another folder"):
        run_it(tiny_root, tmp_path / "study")


@pytest.mark.slow
def test_a_stopped_study_continues_with_the_run_that_was_stopped(tiny_root, tmp_path, monkeypatch):
    monkeypatch.setitem(plans.STUDIES, "baselines", PLANS[:2])
    names, run_stage = [], runner.run_stage

    def stopping(run, task):
        if len(names) == 3:
            names.append("stop")
            raise KeyboardInterrupt
        names.append(f"{run.folder.name} {task}")
        return run_stage(run, task)

    monkeypatch.setattr(runner, "run_stage", stopping)
    with pytest.raises(KeyboardInterrupt):
        run_it(tiny_root, tmp_path)
    assert not list((tmp_path / "results").glob("*.json"))
    run_it(tiny_root, tmp_path)
    assert {run.name for run in results_module.read_results(tmp_path / "results")} == {"replay", "no-replay"}


@pytest.mark.parametrize("rank", [0, 1])
def test_processes_share_the_runs(rank, tiny_root, tmp_path, monkeypatch):
    monkeypatch.setitem(plans.STUDIES, "baselines", PLANS[:4])
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", "2")
    ran = []
    monkeypatch.setattr(runner, "share_stage_1", lambda base: None)
    monkeypatch.setattr(runner, "run_plan", lambda plan, base, results: ran.append(plan.name))
    run_it(tiny_root, tmp_path)
    assert ran == [plan.name for plan in PLANS[:4]][rank::2]


@pytest.mark.parametrize("count", [1, 2, 3, 20])
def test_shards_hold_every_run_once_whatever_is_done_already(count, monkeypatch):
    monkeypatch.setitem(plans.STUDIES, "baselines", PLANS)
    shares = [runner.share("baselines", [0, 1], runner.Shard(index, count)) for index in range(count)]
    runs = [(plan.name, seed) for shard in shares for plan, seed in shard]
    assert sorted(runs) == sorted((plan.name, seed) for plan in PLANS for seed in (0, 1))


def test_a_job_that_starts_later_runs_its_own_share(tiny_root, tmp_path, monkeypatch):
    """The first job has finished its runs before the second one looks at what is missing."""
    monkeypatch.setitem(plans.STUDIES, "baselines", PLANS[:4])
    ran = []
    monkeypatch.setattr(runner, "share_stage_1", lambda base: None)
    monkeypatch.setattr(runner, "run_plan", lambda plan, base, results: ran.append(plan.name))
    monkeypatch.setattr(runner, "missing_runs", lambda *_: [(plan, 0) for plan in PLANS[:4] if plan.name not in ran])
    for index in range(2):
        root = Root(tiny_root, "--data-root")
        runner.run_study("baselines", SETTINGS, root, [0], tmp_path, tmp_path, runner.Shard(index, 2))
    assert sorted(ran) == sorted(plan.name for plan in PLANS[:4])


@pytest.mark.parametrize(("local_rank", "gpu"), [(None, 0), ("1", 1), ("3", 1)])
def test_processes_take_the_gpus_in_turn(local_rank, gpu, tiny_root, tmp_path, monkeypatch):
    chosen = []
    monkeypatch.setitem(plans.STUDIES, "baselines", [])
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if local_rank:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    monkeypatch.setattr(processes.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(processes.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(processes.torch.cuda, "set_device", chosen.append)
    run_it(tiny_root, tmp_path)
    assert chosen == [gpu]


@pytest.mark.slow
def test_only_the_shared_stage_keeps_what_training_needs(done):
    left = sorted(path.relative_to(done / "runs").as_posix() for path in (done / "runs").rglob("*.state.pt"))
    assert left == ["replay_seed0/stage1_segmentation.state.pt"]


def test_the_second_process_waits_for_the_first(tiny_root, tmp_path, monkeypatch):
    base = runner.base_run(SETTINGS, 0, Root(tiny_root, "--data-root"), tmp_path)
    answers = iter([False, False, True])
    waited = []
    monkeypatch.setattr(run_module.Run, "finished", lambda self, task: next(answers))
    monkeypatch.setattr(runner.time, "sleep", waited.append)

    def held_by_another(*_):
        other = run_module.Run(SETTINGS, base.folder, base.root)
        with base.locked(), other.locked():  # as the process has it that trains
            pytest.fail("trained by both")

    monkeypatch.setattr(runner, "run_stage", held_by_another)
    runner.share_stage_1(base)
    assert next(answers, None) is None and len(waited) == 2


@pytest.mark.slow
def test_the_picture_of_forgetting_is_drawn_once_both_runs_are_there(done, tiny_root, tmp_path, monkeypatch):
    asked = []
    run_grid = pictures.run_grid
    monkeypatch.setattr(pictures, "run_grid", lambda runs, *args: asked.append(runs) or run_grid(runs, *args))
    root = Root(tiny_root, "--data-root")
    studies.draw_forgetting(runner.base_run(SETTINGS, 1, root, done / "runs"), tmp_path / "none.png")
    assert asked == [] and not (tmp_path / "none.png").exists()
    studies.draw_forgetting(runner.base_run(SETTINGS, 0, root, done / "runs"), tmp_path / "both.png")
    assert 0 < (tmp_path / "both.png").stat().st_size < 150_000
    ((kept, lost),) = [runs.values() for runs in asked]
    for models, name in ((kept, "replay"), (lost, "no-replay")):
        weights = load_model(done / "runs" / f"{name}_seed0" / "stage2_detection.pt")[0].state_dict()
        assert all(torch.equal(value, models["det"].state_dict()[key].cpu()) for key, value in weights.items())
