"""What a stage records while it trains, and which weights it hands on."""

import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from helpers import ListSet, photo, task_metrics

from mtl_utils import run as run_module
from mtl_utils import stages, weights
from mtl_utils.evaluation import evaluate
from mtl_utils.files import UserError
from mtl_utils.prepare.root import Root
from mtl_utils.run import Run
from mtl_utils.settings import PROFILES
from mtl_utils.stages import run_stage
from mtl_utils.tasks import FOLDERS, TASKS, shared_classes
from mtl_utils.training import BestEpoch, Remedy
from mtl_utils.transforms import to_batch

SETTINGS = replace(
    PROFILES["smoke"],
    train_size=dict(seg=64, det=64, cls=32),
    eval_size=64,
    batch_size=dict(seg=6, det=6, cls=10),
)


@pytest.fixture(autouse=True)
def without_imagenet_weights(monkeypatch):
    monkeypatch.setenv(weights.VARIABLE, weights.NOTHING)


def make_run(root, folder, **changes):
    return Run(replace(SETTINGS, **changes), folder, Root(root, "--data-root"))


def all_halves(model, datasets, size):
    """In the place of `evaluate`: a half for every task."""
    return {dataset.task: task_metrics(dataset.task, 0.5) for dataset in datasets}


def test_a_stage_hands_on_its_best_weights_and_not_the_last_average(tiny_root, tmp_path):
    """The trainer here has no average at all, so nothing but `best` can be handed on."""
    run = make_run(tiny_root, tmp_path, fold_batchnorm=False)
    state = run_module.build(run.settings, run.classes).state_dict()
    shifted = {name: value + 1 if value.is_floating_point() else value for name, value in state.items()}
    best = BestEpoch(epoch=1, loss=1.0, weights=shifted)
    handed_on = stages.best_model(run, SimpleNamespace(best=best)).state_dict()
    assert handed_on.keys() == shifted.keys()
    for name, value in shifted.items():
        expected = value.half().float() if value.is_floating_point() else value
        assert torch.equal(handed_on[name].cpu(), expected), name


def test_val_is_measured_every_few_epochs_and_in_the_last(tiny_root, tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "evaluate", all_halves)
    run = make_run(tiny_root, tmp_path, tasks=["cls"], epochs=dict(seg=1, det=1, cls=5), eval_every=2)
    history = run_stage(run, "cls").history
    assert [record.epoch for record in history] == [1, 2, 3, 4, 5]
    assert [record.epoch for record in history if record.val is not None] == [2, 4, 5]


class Recorder(Remedy):
    """Keeps what `after_stage` is called with."""

    def __init__(self, calls):
        self.calls = calls

    def after_stage(self, trainer, model):
        self.calls.append((trainer.task, sorted(trainer.buffer.samples), model.training))


def test_remedies_are_called_after_every_stage_but_the_last(tiny_root, tmp_path, monkeypatch):
    """By then the stage's exemplars are in the buffer, and the model is the one that is handed on."""
    calls = []
    monkeypatch.setattr(stages, "make_remedies", lambda *_: [Recorder(calls)])
    monkeypatch.setattr(stages, "evaluate", all_halves)
    run = make_run(tiny_root, tmp_path, tasks=["seg", "det"], epochs=dict(seg=1, det=1, cls=1))
    run_stage(run, "det")
    assert calls == [("seg", ["seg"], False)]


def test_the_callback_is_called_when_the_epoch_is_saved(tiny_root, tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "evaluate", all_halves)
    run = make_run(tiny_root, tmp_path, tasks=["cls"], epochs=dict(seg=1, det=1, cls=2))
    saved = []
    run_stage(run, "cls", lambda trainer: saved.append((len(trainer.history), len(run.result("cls").history))))
    assert saved == [(1, 1), (2, 2)]


def test_herding_compares_the_features_of_the_pictures_without_the_padding(tiny_root, tmp_path):
    run = make_run(tiny_root, tmp_path, exemplar_selection="herding", buffer_size=2)
    samples = [(photo(*size), {"label": torch.tensor(0)}) for size in ((32, 64), (64, 64), (64, 16))]
    model, stored = run_module.build(run.settings, run.classes).eval(), []
    buffer = SimpleNamespace(store=lambda dataset, generator, selection, features: stored.append(features))
    settings = replace(run.settings, train_size=dict(seg=64, det=64, cls=64))
    trainer = SimpleNamespace(
        settings=settings, task="cls", dataset=ListSet("cls", samples), buffer=buffer, device="cpu", remedies=[]
    )
    stages.store_exemplars(trainer, model)
    images, content = to_batch([image for image, _ in samples], 64)
    maps = model.head_features(images, content)
    expected = [maps[0, :, :4].mean((1, 2)), maps[1].mean((1, 2)), maps[2, :, :, :2].mean((1, 2))]
    assert torch.allclose(stored[0], torch.stack(expected), atol=1e-5)


@pytest.mark.parametrize("copied", [True, False])
def test_detections_shared_classes_start_from_segmentations_unless_switched_off(
    copied, tiny_root, tmp_path, monkeypatch
):
    monkeypatch.setattr(stages, "evaluate", all_halves)
    run = make_run(tiny_root, tmp_path, epochs=dict(seg=1, det=1, cls=1), copy_shared_classes=copied)
    run_stage(run, "seg")
    before = run.model("seg").head.last.weight
    now = stages.initial_state(run, "det")[0].head.last.weight
    first_seg = 5 + len(run.classes.det)
    assert torch.equal(now[first_seg:], before[first_seg:])
    shared = shared_classes(run.classes.det)
    assert shared, "the tiny set's classes occur in VOC"
    for det_class, seg_class in shared.items():
        source = before[first_seg + seg_class] if copied else before[5 + det_class]
        assert torch.equal(now[5 + det_class], source)


# ---------------------------------------------------------------- the data


ONE_EPOCH = dict(seg=1, det=1, cls=1)


def broken_photo(root):
    """A photograph of the last task, cut in the middle."""
    path = sorted((root / FOLDERS["cls"] / "val").rglob("*.JPEG"))[0]
    path.write_bytes(path.read_bytes()[:200])
    return path


def test_a_fault_in_the_last_tasks_data_is_found_before_the_first_stage(own_root, tmp_path):
    path = broken_photo(own_root)
    run = make_run(own_root, tmp_path / "run", epochs=ONE_EPOCH)
    with pytest.raises(UserError, match=re.escape(str(path))):
        run_stage(run, "seg")
    assert not run.has_started


def test_a_fault_in_a_set_that_the_run_does_not_use_is_no_matter(own_root, tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "evaluate", all_halves)
    broken_photo(own_root)
    run_stage(make_run(own_root, tmp_path / "run", epochs=ONE_EPOCH, tasks=["det"]), "det")


def test_what_was_found_sound_is_not_read_again(tiny_root, tmp_path, monkeypatch):
    make_run(tiny_root, tmp_path).check_data()
    monkeypatch.setattr(Root, "first_fault", lambda *_: pytest.fail("checked again"))
    make_run(tiny_root, tmp_path).check_data()


def test_what_has_changed_since_is_checked_again(own_root, tmp_path):
    make_run(own_root, tmp_path).check_data()
    path = broken_photo(own_root)
    with pytest.raises(UserError, match=re.escape(str(path))):
        make_run(own_root, tmp_path).check_data()


def test_a_stage_depends_on_the_data_that_it_has_seen(own_root, tmp_path, monkeypatch):
    """Other data of classification leave the finished segmentation as it is, another mask does not."""
    monkeypatch.setattr(stages, "evaluate", all_halves)
    run_stage(make_run(own_root, tmp_path, epochs=ONE_EPOCH), "seg")
    photo = sorted((own_root / FOLDERS["cls"] / "train").rglob("*.JPEG"))[0]
    shutil.copy(photo, photo.with_name("another.JPEG"))
    assert make_run(own_root, tmp_path, epochs=ONE_EPOCH).finished("seg")
    mask = sorted((own_root / FOLDERS["seg"] / "train").glob("*.png"))[0]
    mask.unlink()
    mask.with_suffix(".jpg").unlink()
    with pytest.raises(UserError, match="made with other data"):
        make_run(own_root, tmp_path, epochs=ONE_EPOCH).finished("seg")


# ---------------------------------------------------------------- the folder


def test_a_folder_whose_holder_is_dead_is_free(tiny_root, tmp_path):
    """The operating system takes the lock back when a process is killed; the file that it leaves is no lock."""
    code = f"""
import os, signal
from filelock import FileLock
FileLock({str(tmp_path / run_module.LOCK)!r}).acquire()
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    with make_run(tiny_root, tmp_path).locked():
        pass


def test_a_drive_without_locks_is_written_all_the_same(tiny_root, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise NotImplementedError("flock")

    monkeypatch.setattr(run_module.FileLock, "acquire", refuse)
    with make_run(tiny_root, tmp_path).locked():
        pass


def test_what_a_killed_process_left_half_written_is_removed(tiny_root, tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "evaluate", all_halves)
    left = tmp_path / "stage1_segmentation.state.pt.4711.part"
    left.write_bytes(b"half of it")
    run_stage(make_run(tiny_root, tmp_path, epochs=ONE_EPOCH), "seg")
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("lost", ["missing", "older"])
def test_metrics_are_made_again_from_the_stages(lost, tiny_root, tmp_path, monkeypatch):
    """As after a kill between a stage's JSON and metrics.json."""
    monkeypatch.setattr(stages, "evaluate", all_halves)
    run = make_run(tiny_root, tmp_path, epochs=ONE_EPOCH)
    run_stage(run, "seg")
    path = tmp_path / "metrics.json"
    whole = path.read_text()
    if lost == "missing":
        path.unlink()
    else:
        path.write_text("{}")
        os.utime(path, (0, 0))
    run_stage(run, "seg")
    assert path.read_text() == whole


# ---------------------------------------------------------------- before any training


def test_the_first_stage_alone_says_what_all_tasks_score_before_it(trained_run):
    before = trained_run.result("seg").before
    new = run_module.build(trained_run.settings, trained_run.classes)
    datasets = [trained_run.data(task, "val") for task in TASKS]
    assert before == evaluate(new, datasets, trained_run.settings.eval_size)
    assert tuple(before) == TASKS
    assert trained_run.result("det").before == trained_run.result("cls").before == {}


def test_metrics_json_says_what_was_there_before(trained_run):
    metrics = run_module.read_metrics(trained_run.folder / "metrics.json")
    found = {stage: tuple(result.before) for stage, result in metrics.stages.items()}
    assert found == {"seg": TASKS, "det": (), "cls": ()}
    assert metrics.before == metrics.stages["seg"].before == trained_run.result("seg").before
    assert replace(metrics, stages={}).before == {}


@pytest.mark.parametrize("changes", [{"tasks": ["cls"]}, {"joint": True}])
def test_a_task_alone_and_joint_training_have_a_first_stage_too(changes, tiny_root, tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "evaluate", all_halves)
    run = make_run(tiny_root, tmp_path, **changes)
    assert list(stages.metrics_before(run, "cls")) == run.settings.tasks


def test_what_is_there_before_is_measured_with_the_starting_weights(tiny_root, tmp_path, monkeypatch):
    monkeypatch.delenv(weights.VARIABLE)
    seen = []
    monkeypatch.setattr(stages, "evaluate", lambda model, datasets, size: seen.append(model) or {})
    run = make_run(tiny_root, tmp_path)
    stages.metrics_before(run, "seg")
    (model,) = seen
    expected, _ = stages.initial_state(run, "seg")
    assert model.has_imagenet_trunk
    assert all(torch.equal(value, expected.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_stage_that_still_trains_says_nothing_of_before():
    key = run_module.RunKey(SETTINGS, "", "")
    training = run_module.StageResult(key, history=[])
    assert "before" not in training.as_dict()
    metrics = {"seg": task_metrics("seg", 0.5)}
    done = run_module.StageResult(key, history=[], metrics=metrics, before={"det": task_metrics("det", 0.1)})
    assert run_module.StageResult.from_dict(done.as_dict()) == done
