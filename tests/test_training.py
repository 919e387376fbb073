"""The training loop and the chain of stages, on a tiny set."""

import itertools
import math
import time
from dataclasses import replace

import pytest
import torch
from helpers import SETTINGS
from torch import nn

from mtl_utils import checkpoint, files, stages, training, weights
from mtl_utils.files import UserError
from mtl_utils.losses import class_weights
from mtl_utils.model import UnifiedModel
from mtl_utils.prepare.root import Root
from mtl_utils.replay import ReplayBuffer
from mtl_utils.run import Run, build, load_model, read_metrics
from mtl_utils.settings import MAX_REPLAY_PER_TASK, Settings
from mtl_utils.stages import run_stage
from mtl_utils.tasks import IGNORE, TASKS, Task
from mtl_utils.training import EpochRecord, Remedy

CLASS_SKIP = "class_skip.weight"  # 0 until classification is learned


@pytest.fixture(autouse=True)
def without_imagenet_weights(monkeypatch):
    monkeypatch.setenv(weights.VARIABLE, weights.NOTHING)


def make_run(tiny_root, folder, **changes):
    return Run(replace(SETTINGS, **changes), folder, Root(tiny_root, "--data-root"))


@pytest.fixture
def straight(trained_run):
    """A run of all stages that nothing interrupted."""
    return trained_run


def stage_weights(run, task):
    return load_model(run.path(task))[0].state_dict()


def stop_after(epoch):
    def hook(trainer):
        if len(trainer.history) == epoch:
            raise KeyboardInterrupt

    return hook


def seg_buffer(run):
    """A replay buffer that holds images of segmentation."""
    buffer = ReplayBuffer(4)
    buffer.store(run.data("seg", "train"), torch.Generator().manual_seed(0))
    return buffer


def trainer_of(run, task, buffer=None, remedies=(), **changes):
    """A trainer of a task from the weights after stage 1, with other settings where they are named."""
    model = load_model(run.path("seg"))[0]
    data = run.data(task, "train")
    return training.Trainer(model, data, buffer or ReplayBuffer(0), replace(SETTINGS, **changes), "cpu", remedies)


def first_batch(trainer):
    """The first new images of an epoch, as `step` takes them."""
    return {trainer.task: next(iter(trainer.loader()))}


def parameters(model):
    """Copies of all parameters by name."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.slow
def test_interrupted_run_ends_with_the_same_weights(straight, tiny_root, tmp_path):
    run = make_run(tiny_root, tmp_path)
    for task in TASKS:
        with pytest.raises(KeyboardInterrupt):
            run_stage(run, task, stop_after(1))
        torch.rand(3)  # random numbers that are used in between must not matter
        run_stage(make_run(tiny_root, tmp_path), task)
        for name, value in stage_weights(straight, task).items():
            assert torch.equal(value, stage_weights(run, task)[name]), f"{task}: {name} differs"


@pytest.mark.slow
def test_interruption_within_an_epoch_costs_that_epoch_only(straight, tiny_root, tmp_path, monkeypatch):
    run, calls, step = make_run(tiny_root, tmp_path), [], training.Trainer.step

    def interrupted_step(self, batches):
        calls.append(1)
        if len(calls) == 5:  # in the second epoch of three steps each
            raise KeyboardInterrupt
        return step(self, batches)

    monkeypatch.setattr(training.Trainer, "step", interrupted_step)
    with pytest.raises(KeyboardInterrupt):
        run_stage(run, "seg")
    assert len(run.result("seg").history) == 1
    run_stage(run, "seg")
    assert all(torch.equal(v, stage_weights(run, "seg")[k]) for k, v in stage_weights(straight, "seg").items())


def test_a_second_process_in_a_folder_is_told_at_its_start_and_the_first_one_goes_on(straight, tiny_root, tmp_path):
    """A second notebook on the same run stops before it trains, and harms nothing."""
    epochs = []

    def start_another(trainer):
        epochs.append(len(trainer.history))
        with pytest.raises(UserError, match=f"Another process trains in {tmp_path}: wait for it"):
            run_stage(make_run(tiny_root, tmp_path), "seg", lambda _: pytest.fail("trained"))

    run_stage(make_run(tiny_root, tmp_path), "seg", start_another)
    assert epochs == list(range(1, len(epochs) + 1)) and epochs
    stored = stage_weights(make_run(tiny_root, tmp_path), "seg")
    assert all(torch.equal(value, stored[name]) for name, value in stage_weights(straight, "seg").items())


@pytest.mark.slow
def test_without_a_state_a_stage_begins_anew(straight, tiny_root, tmp_path):
    """Who deletes a stage's checkpoints wants it trained again: the history that is left is no other process."""
    run = make_run(tiny_root, tmp_path)
    run_stage(run, "seg")
    run.path("seg").unlink()
    run.path("seg", ".state.pt").unlink()
    assert len(run_stage(run, "seg").history) == SETTINGS.epochs["seg"] and run.finished("seg")


def test_finished_stage_is_loaded_not_trained(straight, monkeypatch):
    monkeypatch.setattr(stages, "make_trainer", lambda *_: pytest.fail("trained again"))
    assert run_stage(straight, "cls").metrics.keys() == set(TASKS)


def test_a_run_with_other_settings_does_not_overwrite_a_finished_one(straight, tiny_root):
    assert straight.finished("cls")
    with pytest.raises(UserError, match=r"stage1_segmentation\.json was made with other settings"):
        run_stage(make_run(tiny_root, straight.folder, lr=dict(seg=1e-4, det=1e-4, cls=1e-4)), "seg")


@pytest.mark.parametrize("name", ["train_size", "epochs", "lr", "batch_size"])
def test_a_finished_stage_does_not_depend_on_what_is_set_for_a_later_task(name, straight, tiny_root):
    values = getattr(SETTINGS, name)
    other = make_run(tiny_root, straight.folder, **{name: values | {"cls": 2 * values["cls"]}})
    assert other.finished("seg") and other.finished("det")
    with pytest.raises(UserError, match=r"stage3_classification\.json was made with other settings"):
        other.finished("cls")


def test_missing_predecessor_is_named_and_trained(tiny_root, tmp_path, capsys):
    run = make_run(tiny_root, tmp_path, epochs=dict(seg=1, det=1, cls=1))
    run_stage(run, "det")
    assert "stage1_segmentation.pt is missing (notebook 03 makes it)" in capsys.readouterr().out
    assert run.finished("seg") and run.finished("det")


def test_every_stage_is_evaluated_on_all_tasks_learned_so_far(straight):
    for i, task in enumerate(TASKS):
        result = straight.result(task)
        assert tuple(result.metrics) == TASKS[: i + 1]
        assert tuple(result.history[-1].val) == TASKS[: i + 1]
        terms = TASKS[: i + 1] + (("boxes_from_masks",) if i > 0 else ())
        assert tuple(result.history[0].loss) == terms


def test_best_epoch_has_the_lowest_training_loss_of_the_weakly_augmented_ones(straight, tiny_root, tmp_path):
    assert [straight.result(task).best_epoch for task in TASKS] == [3, 2, 2]  # the only such epochs
    wild = dict(seg=0.05, det=0.05, cls=0.05)  # a rate so high that the loss jumps
    run = make_run(tiny_root, tmp_path, weak_augmentation=1.0, lr=wild)
    result = run_stage(run, "seg")
    losses = [record.loss["seg"] for record in result.history]
    assert result.best_epoch == losses.index(min(losses)) + 1


def test_no_batchnorm_is_left_after_stage_1(straight, tiny_root, tmp_path):
    kinds = {type(m) for m in load_model(straight.path("seg"))[0].modules()}
    assert nn.BatchNorm2d not in kinds
    drifting = make_run(tiny_root, tmp_path, fold_batchnorm=False, epochs=dict(seg=1, det=1, cls=1))
    run_stage(drifting, "seg")
    assert nn.BatchNorm2d in {type(m) for m in load_model(drifting.path("seg"))[0].modules()}


def test_each_step_replays_the_agreed_number_of_each_earlier_task(straight, monkeypatch, tiny_root, tmp_path):
    run, seen, step = make_run(tiny_root, tmp_path), [], training.Trainer.step
    for task in TASKS[:2]:
        for ending in (".pt", ".state.pt", ".json"):
            (tmp_path / run.path(task, ending).name).write_bytes(straight.path(task, ending).read_bytes())

    def watching(self, batches):
        seen.append({task: len(batch.images) for task, batch in batches.items()})
        return step(self, batches)

    monkeypatch.setattr(training.Trainer, "step", watching)
    run_stage(run, "cls")
    assert seen and all(counts == {"cls": 2, "seg": 2, "det": 2} for counts in seen)


@pytest.mark.parametrize(("count", "replayed"), [(0, set()), (2, {"seg"})])
def test_replay_per_task_0_replays_nothing_from_a_full_buffer(straight, count, replayed):
    """The buffer holds images, so that only the setting decides."""
    assert set(trainer_of(straight, "det", seg_buffer(straight), replay_per_task=count).replay()) == replayed


def test_more_than_ten_replayed_images_are_refused(straight, tiny_root):
    buffer = ReplayBuffer(20)
    buffer.store(straight.data("seg", "train"), torch.Generator().manual_seed(0))
    settings = replace(SETTINGS, replay_per_task=MAX_REPLAY_PER_TASK + 1)
    model = load_model(straight.path("seg"))[0]
    with pytest.raises(AssertionError, match="the assignment allows 10"):
        training.Trainer(model, straight.data("det", "train"), buffer, settings, "cpu").epoch()


def test_training_stops_at_the_first_loss_that_is_not_finite(tiny_root, tmp_path, monkeypatch):
    run = make_run(tiny_root, tmp_path)
    monkeypatch.setattr(training, "segmentation_loss", lambda outputs, *_, **__: outputs.segmentation.sum() * math.nan)
    with pytest.raises(UserError, match="loss became nan in segmentation epoch 1/3"):
        run_stage(run, "seg")


def test_a_gradient_that_is_not_finite_spoils_no_weight(straight):
    trainer = training.Trainer(
        load_model(straight.path("seg"))[0], straight.data("seg", "train"), ReplayBuffer(0), SETTINGS, "cpu"
    )
    batch = {"seg": next(iter(trainer.loader()))}
    hook = trainer.model.head[2].weight.register_hook(lambda grad: grad * math.nan)
    before = {k: v.clone() for k, v in trainer.model.named_parameters()}
    trainer.step(batch)
    assert all(torch.equal(v, before[k]) for k, v in trainer.model.named_parameters())
    hook.remove()
    trainer.step(batch)
    moved = {k for k, v in trainer.model.named_parameters() if not torch.equal(v, before[k])}
    assert moved == set(before) - {CLASS_SKIP}


@pytest.mark.parametrize("boxes_from_masks", [True, False])
def test_replayed_segmentation_images_teach_detection_too(boxes_from_masks, straight):
    """Only a loss on their boxes gives the confidence channel a gradient when nothing but them is trained on."""
    buffer = ReplayBuffer(4)
    buffer.store(straight.data("seg", "train"), torch.Generator().manual_seed(0))
    assert all({"mask", "boxes", "labels", "crowd"} == set(target) for _, target in buffer.samples["seg"])
    settings = replace(SETTINGS, boxes_from_masks=boxes_from_masks, weight_decay=0.0)
    model = load_model(straight.path("seg"))[0]
    trainer = training.Trainer(model, straight.data("det", "train"), buffer, settings, "cpu")
    before = trainer.model.head[2].weight[:5].clone()
    trainer.step(trainer.replay())
    assert torch.equal(trainer.model.head[2].weight[:5], before) != boxes_from_masks


def test_training_learns(straight):
    history = straight.result("seg").history
    assert history[-1].loss["seg"] < history[0].loss["seg"]


def test_training_and_measuring_have_sizes_of_their_own(straight, tiny_root, tmp_path, monkeypatch):
    run, asked = make_run(tiny_root, tmp_path, eval_size=128), []

    def evaluate(model, datasets, size):
        asked.append(([dataset.task for dataset in datasets], size))

    monkeypatch.setattr(stages, "evaluate", evaluate)
    stages.evaluate_tasks(run, straight.model("cls"), "cls")
    assert asked == [(["seg", "det", "cls"], 128)], "all tasks at once, at one size"
    trainer = training.Trainer(
        straight.model("seg"), straight.data("seg", "train"), ReplayBuffer(0), run.settings, "cpu"
    )
    assert next(iter(trainer.loader())).images.shape[-2:] == (64, 64)


def test_the_network_is_told_where_the_pictures_are(straight):
    trainer, seen = trainer_of(straight, "det", seg_buffer(straight)), []
    trainer.model.backbone.register_forward_hook(lambda _, inputs, __: seen.append(inputs[1]))
    batches = first_batch(trainer) | trainer.replay()
    trainer.step(batches)
    assert len(seen) == 2
    assert all(torch.equal(content, batch.content) for content, batch in zip(seen, batches.values(), strict=True))
    whole = torch.tensor([0.0, 0, 64, 64])
    assert not all((content == whole).all() for content in seen), "a window with padding"


def test_learning_rate_rises_then_falls_to_zero():
    factors = [training.warmup_cosine(i, total=100, warmup=0.1) for i in range(100)]
    assert factors[0] == pytest.approx(0.1) and max(factors) == factors[9] == 1
    assert factors[55] == pytest.approx(0.5, abs=0.01) and factors[-1] < 0.001
    assert all(a >= b for a, b in itertools.pairwise(factors[9:]))


def test_average_of_weights_warms_up_to_its_decay():
    average = torch.tensor(0.0)
    for count in range(2000):
        average = training.ema_update(0.99, average, torch.tensor(1.0), count)
    assert average == pytest.approx(1.0, abs=1e-5)
    assert training.ema_update(0.99, torch.tensor(0.0), torch.tensor(1.0), 10**6) == pytest.approx(0.01)
    assert training.ema_update(0.99, torch.tensor(0.0), torch.tensor(1.0), 0) == pytest.approx(0.9)


def groups_of(model, settings, task):
    """The optimiser's groups of a stage, as a trainer makes them."""
    training.freeze_layers(model, settings, task)
    return training.parameter_groups(model, *training.learning_rates(model, settings, task))


def test_only_a_trunk_with_imagenet_weights_learns_more_slowly(straight):
    model = load_model(straight.path("seg"))[0]
    settings = replace(SETTINGS, freeze_trunk=False)
    assert [g["lr"] for g in groups_of(model, settings, "seg")] == [3e-3, 3e-3]
    model.has_imagenet_trunk = True
    slow, fast = groups_of(model, settings, "seg")
    assert slow["lr"] == pytest.approx(1e-4) and fast["lr"] == 1e-3
    assert set(slow["params"]) == set(model.backbone.trunk.parameters())


def test_every_parameter_that_learns_is_in_one_group_once(straight):
    model = load_model(straight.path("seg"))[0]
    trunk, new = training.parameter_groups(model, trunk_lr=1.0, lr=2.0)
    assert trunk["lr"] == 1.0 and set(trunk["params"]) == set(model.backbone.trunk.parameters())
    assert new["lr"] == 2.0 and len(trunk["params"] + new["params"]) == len(list(model.parameters()))
    assert set(trunk["params"] + new["params"]) == set(model.parameters())
    model.backbone.trunk.requires_grad_(False)
    frozen, same = training.parameter_groups(model, trunk_lr=1.0, lr=2.0)
    assert frozen["params"] == [] and len(same["params"]) == len(new["params"])


def learning(model, settings, has_imagenet_trunk=True) -> bool:
    """Whether any layer of the trunk learns in a stage."""
    model.requires_grad_(True)
    model.has_imagenet_trunk = has_imagenet_trunk
    training.freeze_layers(model, settings, "det")
    assert all(p.requires_grad for p in model.head.parameters())
    return any(p.requires_grad for p in model.backbone.trunk.parameters())


def test_a_trunk_is_frozen_where_it_has_imagenet_weights_and_the_setting_says_so(straight):
    model = load_model(straight.path("seg"))[0]
    assert not learning(model, SETTINGS)
    assert learning(model, replace(SETTINGS, freeze_trunk=False))
    assert learning(model, SETTINGS, has_imagenet_trunk=False)


def frozen_parts(settings: Settings, task: Task) -> set[str]:
    """The parts of a new model with ImageNet weights of which no parameter learns in a stage."""
    model = UnifiedModel(2, 2)
    model.has_imagenet_trunk = True
    training.freeze_layers(model, settings, task)
    parts = {**dict(model.backbone.named_children()), "head": model.head}
    return {name for name, part in parts.items() if not any(p.requires_grad for p in part.parameters())}


def test_the_neck_is_frozen_in_stages_whose_setting_says_so_once_an_earlier_one_has_trained_it():
    neck = {"pooling", "fusion"}
    in_all = replace(SETTINGS, freeze_neck=dict.fromkeys(TASKS, True))
    assert [frozen_parts(in_all, task) for task in TASKS] == [{"trunk"}, {"trunk"} | neck, {"trunk"} | neck]
    in_last = replace(SETTINGS, freeze_neck={"seg": False, "det": False, "cls": True})
    assert [frozen_parts(in_last, task) for task in TASKS] == [{"trunk"}, {"trunk"}, {"trunk"} | neck]
    assert frozen_parts(replace(in_last, tasks=["cls"]), "cls") == {"trunk"}, "alone, nothing else has trained it"
    assert frozen_parts(replace(in_last, joint=True), "cls") == {"trunk"}, "nor has anything in joint training"
    assert frozen_parts(replace(in_last, freeze_trunk=False), "cls") == set(), "below it the trunk would go on learning"


def test_a_frozen_neck_keeps_every_weight_and_skip_connection_and_head_learn(straight):
    model = load_model(straight.path("seg"))[0]
    model.has_imagenet_trunk = True
    before = {k: v.clone() for k, v in model.state_dict().items()}
    settings = replace(SETTINGS, freeze_neck=dict.fromkeys(TASKS, True))
    training.Trainer(model, straight.data("cls", "train"), ReplayBuffer(0), settings, "cpu").epoch()
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {k for k in before if k.startswith(("backbone.skip.", "head.", CLASS_SKIP))}


@pytest.mark.parametrize("freeze", [True, False])
@pytest.mark.parametrize("task", ["seg", "cls"])
def test_a_frozen_trunk_keeps_every_weight_and_what_is_above_learns(task, freeze, straight):
    """In the first stage as in the last."""
    model = load_model(straight.path("seg"))[0]
    model.has_imagenet_trunk = True
    before = {k: v.clone() for k, v in model.state_dict().items()}
    settings = replace(SETTINGS, freeze_trunk=freeze, freeze_neck=dict.fromkeys(TASKS, False))
    training.Trainer(model, straight.data(task, "train"), ReplayBuffer(0), settings, "cpu").epoch()
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    kept = {k for k in before if freeze and k.startswith("backbone.trunk.")}
    if task != "cls":
        kept.add(CLASS_SKIP)
    assert changed == set(before) - kept


def test_strong_augmentation_ends_before_the_last_epochs(straight):
    trainer = training.Trainer(
        load_model(straight.path("seg"))[0],
        straight.data("seg", "train"),
        ReplayBuffer(0),
        replace(SETTINGS, epochs=dict(seg=10, det=1, cls=1)),
        "cpu",
    )
    trainer.history = [{}] * 8
    assert "RandomWindow" in str(trainer.transform("seg"))
    trainer.history = [{}] * 9
    assert "RandomWindow" not in str(trainer.transform("seg"))


def test_before_any_training_the_committed_run_is_shown(straight, tiny_root, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(files, "COMMITTED_WEIGHTS", straight.path("cls"))
    monkeypatch.setattr(files, "COMMITTED_METRICS", straight.folder / "metrics.json")
    monkeypatch.setattr(stages, "run_stage", lambda *_: pytest.fail("trained"))
    metrics, models = stages.open_results(make_run(tiny_root, tmp_path / "empty"))
    assert list(metrics.stages) == list(TASKS) and list(models) == ["cls"]
    assert "came with the project" in capsys.readouterr().out


def test_a_run_that_has_begun_is_shown_itself(straight):
    metrics, models = stages.open_results(straight)
    assert metrics.key.settings == SETTINGS and list(models) == list(TASKS)


def test_damaged_history_is_named(tiny_root, tmp_path):
    run = make_run(tiny_root, tmp_path)
    run.path("seg", ".json").write_text("{")
    with pytest.raises(UserError, match=r"stage1_segmentation\.json .*delete it and run the stage again"):
        run.result("seg")


def test_results_of_another_version_are_named_as_such(tiny_root, tmp_path):
    run = make_run(tiny_root, tmp_path)
    files.write_json(run.path("seg", ".json"), {"key": {"settings": {"lr": 0.1}}})
    files.write_json(tmp_path / "metrics.json", {"settings": {"lr": 0.1}})
    with pytest.raises(UserError, match=r"is damaged or of another version: delete it and run the stage again"):
        run.result("seg")
    with pytest.raises(UserError, match=r"metrics\.json is damaged or of another version .*: train first"):
        read_metrics(tmp_path / "metrics.json")


def test_metrics_json_holds_what_the_tables_need(straight):
    from mtl_utils.forgetting import closing_report

    metrics = read_metrics(straight.folder / "metrics.json")
    assert metrics.key.initial_weights == "nothing" and metrics.parameters > 1_000_000
    assert closing_report(metrics.stage_metrics).count("baseline=") == 3


# ---------------------------------------------------------------- each setting does what it says


def test_the_gradient_is_clipped(straight):
    trainer = trainer_of(straight, "seg", max_grad_norm=1e-3)
    trainer.step(first_batch(trainer))
    norm = torch.stack([p.grad.norm() for p in trainer.model.parameters()]).norm()
    assert norm.item() == pytest.approx(1e-3, rel=1e-2)


def test_the_average_moves_by_its_decay_after_its_warm_up(straight):
    trainer = trainer_of(straight, "seg")
    trainer.ema.n_averaged.fill_(10**6)
    before = parameters(trainer.ema.module)
    trainer.step(first_batch(trainer))
    new, average = parameters(trainer.model), parameters(trainer.ema.module)
    assert {name for name, old in before.items() if torch.equal(new[name], old)} == {CLASS_SKIP}
    for name, old in before.items():
        torch.testing.assert_close(average[name], old + 0.01 * (new[name] - old), rtol=1e-6, atol=1e-7)


def test_the_best_weights_are_averaged_ones(straight):
    trainer = trainer_of(straight, "seg", epochs=dict(seg=1, det=1, cls=1))
    trainer.epoch()
    average, raw = trainer.ema.module.state_dict(), trainer.model.state_dict()
    assert all(torch.equal(value, average[name]) for name, value in trainer.best.weights.items())
    same = {name for name in parameters(trainer.model) if torch.equal(trainer.best.weights[name], raw[name])}
    assert same == {CLASS_SKIP}


def test_replayed_images_are_augmented_like_new_ones(straight, monkeypatch):
    asked = []

    def recording(kind, make):
        return lambda *arguments: asked.append((kind, *arguments)) or make(*arguments)

    monkeypatch.setattr(training, "strong_augmentation", recording("strong", training.strong_augmentation))
    monkeypatch.setattr(training, "weak_augmentation", recording("weak", training.weak_augmentation))
    trainer = trainer_of(straight, "det", seg_buffer(straight), epochs=dict(seg=1, det=10, cls=1))
    trainer.replay()
    assert asked == [("strong", "seg", 64)]
    trainer.history = [{}] * 9
    trainer.replay()
    assert asked[1:] == [("weak", 64)], "in the last tenth of the epochs"


def test_replayed_masks_have_the_class_weights_of_the_stored_ones(straight):
    buffer = seg_buffer(straight)
    weights = training.make_losses(straight.data("det", "train"), buffer, "cpu")["seg"].keywords["weights"]
    pixels = torch.zeros(256, dtype=torch.int64)
    for _, target in buffer.samples["seg"]:
        values, counts = target["mask"].unique(return_counts=True)
        pixels[values.long()] += counts
    assert torch.equal(weights, class_weights(pixels[:21]))
    assert len(weights.unique()) > 1


def test_replay_teaches_nothing_about_classes_that_no_stored_mask_shows(straight):
    """In a stage of segmentation itself all classes are learned, those that never occur too: they occur nowhere."""
    buffer = ReplayBuffer(1)
    buffer.store(straight.data("seg", "train"), torch.Generator().manual_seed(0))
    ((_, target),) = buffer.samples["seg"]
    shown = set(target["mask"].unique().tolist()) - {IGNORE}
    replayed = training.make_losses(straight.data("det", "train"), buffer, "cpu")["seg"].keywords["left_out"]
    assert set((~replayed).nonzero().flatten().tolist()) == shown and len(shown) < 21
    learned = training.make_losses(straight.data("seg", "train"), buffer, "cpu")["seg"].keywords["left_out"]
    assert learned is None


def test_replay_weight_multiplies_an_earlier_tasks_loss_once(straight):
    """Without clipping, half the weight gives half the gradient and half of each term: exactly, as 1/2 is binary."""
    whole, half = (
        trainer_of(straight, "det", seg_buffer(straight), max_grad_norm=1e9, replay_weight=w) for w in (1.0, 0.5)
    )
    batch = whole.replay()
    logged, logged_half = whole.step(batch), half.step(batch)
    assert set(logged) == {"seg", "boxes_from_masks"} and all(value > 0 for value in logged.values())
    assert logged_half == {term: value / 2 for term, value in logged.items()}
    pairs = list(zip(whole.model.parameters(), half.model.parameters(), strict=True))
    assert all(torch.equal(p.grad / 2, q.grad) for p, q in pairs)
    assert any(p.grad.any() for p, _ in pairs)


def test_weights_decay_where_the_loss_has_no_gradient(straight):
    trainer = trainer_of(straight, "seg", weight_decay=0.5, lr=dict(seg=0.1, det=0.1, cls=0.1))
    trainer.losses = {"seg": lambda outputs, _: outputs.segmentation.sum() * 0}
    before, rate = parameters(trainer.model), trainer.optimizer.param_groups[0]["lr"]
    assert rate > 0.01 and {group["lr"] for group in trainer.optimizer.param_groups} == {rate}
    trainer.step(first_batch(trainer))
    for name, value in parameters(trainer.model).items():
        torch.testing.assert_close(value, before[name] * (1 - rate * 0.5))


def test_the_seed_decides_the_order_of_the_images(straight):
    orders = [list(trainer_of(straight, "cls", seed=seed).loader().sampler) for seed in (0, 1, 0)]
    assert orders[0] != orders[1] and orders[0] == orders[2]


# ---------------------------------------------------------------- the loss that is logged is the loss that is minimised


class Constant(Remedy):
    """Adds fixed numbers to the loss of every batch and of every step."""

    def __init__(self, batch=0.0, step=0.0):
        self.batch, self.step = batch, step

    def batch_loss(self, trainer, task, batch, features):
        return features.sum() * 0 + self.batch

    def step_loss(self, trainer):
        return trainer.model.head[2].bias.sum() * 0 + self.step


class SquaredMap(Remedy):
    """The mean square of what the head emits: a loss with a gradient in every layer."""

    def batch_loss(self, trainer, task, batch, features):
        return trainer.model.head[2](features).float().square().mean()


def test_the_logged_terms_add_up_to_what_is_minimised(straight):
    """Whatever is propagated backwards goes through the scaler, which does nothing else on a CPU."""
    trainer = trainer_of(straight, "det", seg_buffer(straight), [Constant(0.25, 0.5)], replay_weight=0.5)
    minimised = []
    trainer.scaler.scale = lambda loss: minimised.append(loss.item()) or loss
    terms = trainer.step(first_batch(trainer) | trainer.replay())
    assert set(terms) == {"det", "seg", "boxes_from_masks", "remedies"}
    assert all(value > 0 for value in terms.values())
    assert terms["remedies"] == 0.25 + 0.25 + 0.5, "two batches and one step"
    assert sum(terms.values()) == pytest.approx(sum(minimised), rel=1e-6)


def test_the_epochs_record_holds_the_mean_of_every_term(straight):
    trainer = trainer_of(straight, "det", seg_buffer(straight), [Constant(0.25, 0.5)])
    record = trainer.epoch()
    assert tuple(record.loss)[:2] == ("seg", "det") and set(record.loss) > {"boxes_from_masks"}
    assert record.loss["remedies"] == pytest.approx(1.0)
    assert record.total_loss == sum(record.loss.values())


def test_a_stage_without_other_terms_logs_its_tasks_only(straight):
    assert set(trainer_of(straight, "seg", remedies=[Remedy()]).epoch().loss) == {"seg"}


@pytest.mark.parametrize("boxes_from_masks", [True, False])
def test_boxes_from_masks_have_a_term_where_they_are_trained_on(straight, boxes_from_masks):
    trainer = trainer_of(straight, "det", seg_buffer(straight), boxes_from_masks=boxes_from_masks)
    assert ("boxes_from_masks" in trainer.step(trainer.replay())) == boxes_from_masks


def test_a_remedys_loss_is_not_weighed_by_replay_weight(straight):
    """Without supervised losses, the gradient on a replayed batch is the remedy's, whatever the weight of replay is."""
    gradients, values = [], []
    for weight in (1.0, 0.5):
        trainer = trainer_of(
            straight, "det", seg_buffer(straight), [SquaredMap()], replay_weight=weight, max_grad_norm=1e9
        )
        trainer.losses = dict.fromkeys(TASKS, lambda outputs, _: outputs.segmentation.sum() * 0)
        values.append(trainer.step(trainer.replay()))
        gradients.append([p.grad for p in trainer.model.parameters()])
    assert any(gradient.any() for gradient in gradients[0])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
    assert values[0] == values[1]


def test_the_best_epoch_is_chosen_by_the_sum_of_all_terms(straight):
    """The supervised loss falls from epoch to epoch, while the remedy's rises by more."""

    class Rising(Remedy):
        def step_loss(self, trainer):
            return trainer.model.head[2].bias.sum() * 0 + 10.0 * len(trainer.history)

    trainer = trainer_of(straight, "seg", remedies=[Rising()], weak_augmentation=1.0)
    while not trainer.finished:
        trainer.epoch()
    supervised = [record.loss["seg"] for record in trainer.history]
    assert supervised.index(min(supervised)) > 0, "otherwise the remedy makes no difference"
    assert trainer.best.epoch == 1
    assert trainer.best.loss == trainer.history[0].total_loss


def test_a_remedys_loss_that_is_not_finite_is_named(straight):
    trainer = trainer_of(straight, "seg", remedies=[Constant(step=math.inf)])
    with pytest.raises(UserError, match="The remedies loss became inf in segmentation epoch 1/3"):
        trainer.step(first_batch(trainer))


def test_an_epochs_record_survives_json_and_has_val_only_where_it_was_evaluated():
    record = EpochRecord(epoch=2, loss={"seg": 1.5, "remedies": 0.5}, lr=1e-3, seconds=0.1)
    assert "val" not in record.as_dict() and EpochRecord.from_dict(record.as_dict()) == record
    record.val = {"seg": 0.4}
    assert record.as_dict()["val"] == {"seg": 0.4} and EpochRecord.from_dict(record.as_dict()) == record


def test_a_state_from_before_the_first_best_epoch_can_be_continued(straight, tmp_path):
    """Of three epochs, only the last has weak augmentation."""
    trainer = trainer_of(straight, "seg")
    trainer.epoch()
    checkpoint.save(tmp_path / "state.pt", trainer.state_dict())
    state = checkpoint.load(tmp_path / "state.pt")
    assert state["best"] is None
    other = trainer_of(straight, "seg")
    other.load_state_dict(state)
    assert other.best is None and other.history == trainer.history
    for _ in range(2):
        other.epoch()
    kept = other.state_dict()["best"]
    assert kept.keys() == {"epoch", "loss", "model"} and kept["epoch"] == 3


def test_a_remedy_without_losses_of_its_own_adds_nothing(straight):
    trainer = trainer_of(straight, "seg")
    remedy = Remedy()
    assert remedy.batch_loss(trainer, "seg", first_batch(trainer)["seg"], torch.zeros(1)) == 0
    assert remedy.step_loss(trainer) == 0


@pytest.mark.parametrize(("task", "seed", "expected"), [("seg", 0, 0), ("det", 0, 1), ("cls", 3, 32)])
def test_every_stage_has_random_numbers_of_its_own(straight, task, seed, expected):
    assert trainer_of(straight, task, seed=seed).generator.initial_seed() == expected


def test_batchnorms_statistics_are_averaged_like_weights(straight):
    model = build(SETTINGS, straight.classes)  # new: its BatchNorm is not folded yet
    trainer = training.Trainer(model, straight.data("seg", "train"), ReplayBuffer(0), SETTINGS, "cpu")
    trainer.model.train()
    for _ in range(2):  # the first update copies
        trainer.step(first_batch(trainer))
    own, average = trainer.model.state_dict(), trainer.ema.module.state_dict()
    means = [name for name in own if name.endswith("running_mean")]
    assert means and any(not torch.equal(own[name], average[name]) for name in means)


def test_an_epochs_record_holds_the_mean_of_its_steps(straight, monkeypatch):
    """Losses of 1, 2 and so on: their mean, with the seconds that the epoch took as seen from outside."""
    trainer = trainer_of(straight, "seg")
    values = itertools.count(1)
    monkeypatch.setattr(trainer, "step", lambda batches: {"seg": float(next(values)), "remedies": 2.0})
    started = time.perf_counter()
    record = trainer.epoch()
    elapsed = time.perf_counter() - started
    assert record.loss == {"seg": (1 + trainer.steps) / 2, "remedies": 2.0}
    assert 0 < record.seconds <= elapsed
    assert record.epoch == 1


def test_the_new_tasks_loss_counts_once(straight):
    """Whatever `replay_weight` is: it weighs the earlier tasks only."""
    trainer = trainer_of(straight, "seg", replay_weight=0.5)
    trainer.losses = {"seg": lambda outputs, _: outputs.segmentation.sum() * 0 + 3}
    assert trainer.step(first_batch(trainer))["seg"] == 3


def test_of_equal_epochs_the_first_is_the_best(straight):
    trainer = trainer_of(straight, "seg")
    for epoch in (1, 2):
        trainer.keep_if_best(EpochRecord(epoch=epoch, loss={"seg": 1.5}, lr=0.0, seconds=0.0))
    assert trainer.best.epoch == 1
