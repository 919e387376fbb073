"""Remedies against forgetting: their distances by hand, and each on a problem whose solution is known."""

import itertools
import math
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torchvision.models import mobilenet_v2

from mtl_utils import checkpoint, stages, training, weights
from mtl_utils.data import MiniSet, find_classes
from mtl_utils.files import UserError
from mtl_utils.model import UnifiedModel, fold_batchnorm
from mtl_utils.prepare.root import Root
from mtl_utils.remedies import build as build_module
from mtl_utils.remedies import derpp, distances, ewc, had, lwf, stage0
from mtl_utils.replay import ReplayBuffer
from mtl_utils.run import Run, load_model
from mtl_utils.settings import Settings
from mtl_utils.stages import run_stage

WIDTH = 256  # channels of the head features of the paper's widths: the head's input beside its inner layers' output
SETTINGS = Settings(
    widths="paper",
    train_size=dict(seg=64, det=64, cls=64),
    eval_size=dict(seg=64, det=64, cls=64),
    epochs=dict(seg=2, det=2, cls=2),
    batch_size=dict(seg=2, det=2, cls=2),
    buffer_size=4,
    replay_per_task=2,
)


@pytest.fixture
def content(tmp_path, monkeypatch):
    """The content of a file of stage 0: a random network and a random classifier of five classes."""
    model = UnifiedModel("paper", 1, 1)
    fold_batchnorm(model)
    below = {k: v for k, v in model.state_dict().items() if not k.startswith("head.2.")}
    classifier = nn.Linear(WIDTH, 5)
    nn.init.normal_(classifier.weight)
    content = {"model": below, "classifier": classifier.state_dict(), "classes": list("abcde"), "widths": "paper"}
    checkpoint.save(tmp_path / "stage0_paper.pt", content)
    monkeypatch.setenv(weights.VARIABLE, str(tmp_path / "stage0_paper.pt"))
    return content


def folded(det=10, cls=10) -> UnifiedModel:
    model = UnifiedModel("paper", det, cls)
    fold_batchnorm(model)
    return model


# --- distances -----------------------------------------------------------------------------------------------------


def test_soft_kl_by_hand():
    """At temperature 2 the logits 2 ln 3 and 0 are 3/4 and 1/4: against halves .75 ln 1.5 + .25 ln .5, times 4."""
    teacher, student = torch.tensor([[2 * math.log(3), 0.0]]), torch.zeros(1, 2)
    wanted = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert distances.soft_kl(student, teacher).item() == pytest.approx(wanted)


def test_hard_cross_entropy_is_minus_the_log_probability_of_the_teachers_best_class():
    teacher, student = torch.randn(3, 5, 4, 4), torch.randn(3, 5, 4, 4)
    found = distances.hard_cross_entropy(student, teacher)
    assert found.shape == (3, 4, 4)
    for b, y, x in itertools.product(range(3), range(4), range(4)):
        exponentials = [math.exp(logit) for logit in student[b, :, y, x].tolist()]
        logits = teacher[b, :, y, x].tolist()
        best = logits.index(max(logits))
        assert found[b, y, x].item() == pytest.approx(-math.log(exponentials[best] / sum(exponentials)), abs=1e-5)


@pytest.mark.parametrize("task", ["seg", "det", "cls"])
def test_soft_distances_are_zero_for_the_same_map_and_positive_for_another(task):
    teacher = torch.randn(2, 8, 4, 6)
    student = teacher + torch.randn_like(teacher)
    assert distances.distillation_distance(task, teacher, teacher, distances.soft_kl).abs().max() < 1e-5
    assert distances.distillation_distance(task, student, teacher, distances.soft_kl).sum() > 0


def test_boxes_and_classes_count_in_proportion_to_the_teachers_confidence():
    teacher, student = torch.zeros(1, 7, 1, 2), torch.zeros(1, 7, 1, 2)
    teacher[0, 4, 0] = torch.tensor([20.0, -20.0])
    student[0, 4, 0] = teacher[0, 4, 0]
    student[0, 0] = 3.0  # cx is off by 3 in both cells: smooth L1 is 2.5
    found = distances.detection_distance(student, teacher, distances.soft_kl)
    assert found[0, 0].tolist() == pytest.approx([2.5, 0.0], abs=1e-4)


def test_class_balanced_mean_by_hand():
    gaps, labels = torch.tensor([1.0, 1.0, 1.0, 5.0, 7.0]), torch.tensor([0, 0, 0, 3, 3])
    assert distances.class_balanced_mean(gaps, labels).item() == pytest.approx((1 + 6) / 2)


def test_edge_mean_is_taken_at_the_edges_of_the_distances():
    """A step between the columns 2 and 3: the two columns beside it have the edge, away from the borders."""
    gaps = torch.zeros(1, 7, 8)
    gaps[:, :, 3:] = 10.0
    gaps[:, :, 7] = 0.0  # the right border's own edge is as strong as the step
    assert distances.edge_mean(gaps).item() == pytest.approx(5.0, abs=1.5)
    assert distances.edge_mean(torch.full((1, 6, 6), 2.0)).item() == pytest.approx(2.0)


# --- elastic weight consolidation ----------------------------------------------------------------------------------


def test_fisher_information_is_the_mean_squared_gradient():
    model = nn.Linear(2, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    batches = [(torch.tensor([[1.0, 0.0]]), 0.0), (torch.tensor([[2.0, 3.0]]), 1.0)]
    fisher = ewc.fisher_information(model, batches, lambda outputs, target: (outputs - target).square().sum())
    # gradients 2 (y - t) x: 2 * 1 * (1, 0) and 2 * 4 * (2, 3)
    assert fisher["weight"].tolist() == [[(2**2 + 16**2) / 2, 24**2 / 2]]


def test_ewc_penalty_has_the_closed_form_minimum():
    """min (w - 3)^2 + weight / 2 * F * (w - 1)^2 lies at (6 + weight F) / (2 + weight F)."""
    model = nn.Linear(2, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    remedy = ewc.ElasticWeightConsolidation(4.0, model, {"weight": torch.tensor([[0.0, 2.0]])})
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for _ in range(300):
        optimizer.zero_grad()
        loss = (model.weight - 3).square().sum() + remedy.step_loss(SimpleNamespace(model=model))
        loss.backward()
        optimizer.step()
    assert model.weight.tolist()[0] == pytest.approx([3.0, (6 + 8) / (2 + 8)], abs=1e-3)


# --- distillation --------------------------------------------------------------------------------------------------


def context(model, task, settings=SETTINGS, **more):
    return SimpleNamespace(model=model, task=task, settings=settings, device="cpu", **more)


@pytest.mark.parametrize("remedy", [lwf.LearningWithoutForgetting, had.HeterogeneityAware])
def test_distillation_pulls_a_changed_network_back(remedy, monkeypatch):
    """With nothing but the remedy's loss, a disturbed head comes to predict again what the teacher predicts.

    64 cells of 256 random features each: a linear layer can fit any labels of them.
    """
    model, hidden, images = folded(), torch.randn(4, WIDTH, 4, 4), torch.rand(4, 3, 32, 32)
    nn.init.normal_(model.head[-1].weight, std=0.3)
    distil = remedy(1.0, model)
    monkeypatch.setattr(distil.teacher, "head_features", lambda _: hidden)
    best = distil.teacher_map(images)[:, 15:36].argmax(1)
    agreement = lambda: (model.head[-1](hidden)[:, 15:36].argmax(1) == best).float().mean().item()  # noqa: E731
    with torch.no_grad():
        model.head[-1].weight += 0.3 * torch.randn_like(model.head[-1].weight)
    before, optimizer = agreement(), torch.optim.Adam(model.head[-1].parameters(), 0.02)
    for _ in range(100):
        optimizer.zero_grad()
        distil.batch_loss(context(model, "cls"), "cls", images, hidden).backward()
        optimizer.step()
    assert before < 0.7 and agreement() > 0.9


def test_soft_distillation_costs_nothing_where_nothing_has_changed():
    model, images = folded(), torch.rand(2, 3, 64, 64)
    distil = lwf.LearningWithoutForgetting(1.0, model)
    assert distil.batch_loss(context(model, "cls"), "cls", images, model.head_features(images)).item() == pytest.approx(
        0, abs=1e-5
    )


def test_only_earlier_tasks_are_distilled_and_not_on_their_own_images(monkeypatch):
    model, images, asked = folded(), torch.rand(1, 3, 32, 32), []
    distil = lwf.LearningWithoutForgetting(1.0, model)
    monkeypatch.setattr(distil, "distance", lambda task, student, _: asked.append((task, student.shape[1])) or 0.0)
    hidden = model.head_features(images)
    distil.batch_loss(context(model, "cls"), "cls", images, hidden)
    distil.batch_loss(context(model, "cls"), "seg", images, hidden)
    distil.batch_loss(context(model, "det"), "seg", images, hidden)
    assert asked == [("seg", 21), ("det", 15), ("det", 15)]


def test_the_teacher_neither_learns_nor_changes():
    model, images = folded(), torch.rand(2, 3, 64, 64)
    distil = had.HeterogeneityAware(1.0, model)
    before = {k: v.clone() for k, v in distil.teacher.state_dict().items()}
    with torch.no_grad():
        model.head[-1].weight += 1.0
    distil.batch_loss(context(model, "det"), "det", images, model.head_features(images)).backward()
    assert all(torch.equal(v, before[k]) for k, v in distil.teacher.state_dict().items())
    assert all(p.grad is None for p in distil.teacher.parameters())
    assert model.head[-1].weight.grad.abs().sum() > 0


# --- distillation from stage 0 -------------------------------------------------------------------------------------


def starting_weights(widths="paper") -> weights.StartingWeights:
    """What a new run would start from now."""
    return weights.find_starting_weights(widths)


def test_the_teacher_has_the_logits_of_stage_0(content):
    model = UnifiedModel("paper", 3, 3)
    weights.load_starting_weights(model, starting_weights())
    images = torch.rand(2, 3, 64, 96)
    wanted = weights.classifier(content)(model.eval().head_features(images).mean((2, 3)))
    assert torch.allclose(stage0.Stage0Distillation(1.0, content).teacher_logits(images), wanted, atol=1e-5)


def test_large_images_are_shown_to_the_teacher_at_its_own_size(content, monkeypatch):
    teacher, seen = stage0.Stage0Distillation(1.0, content), []
    features = torch.zeros(1, WIDTH, 1, 1)
    monkeypatch.setattr(teacher.teacher, "head_features", lambda images: seen.append(images.shape) or features)
    teacher.teacher_logits(torch.rand(1, 3, 320, 320))
    teacher.teacher_logits(torch.rand(1, 3, 96, 64))
    assert seen == [(1, 3, 160, 160), (1, 3, 96, 64)]


def test_new_images_only_are_shown_to_the_teacher(content):
    teacher, images = stage0.Stage0Distillation(1.0, content), torch.rand(1, 3, 64, 64)
    hidden = torch.rand(1, WIDTH, 8, 8)
    assert teacher.batch_loss(context(None, "det"), "det", images, hidden) > 0
    assert teacher.batch_loss(context(None, "det"), "seg", images, hidden) == 0


@pytest.mark.slow
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_training_on_a_new_task_keeps_stage_0s_predictions_only_with_the_loss(content, weight, tiny_root):
    """The network drifts a long way from the teacher in thirty epochs of segmentation, or hardly at all."""
    model = UnifiedModel("paper", 10, 10)
    weights.load_starting_weights(model, starting_weights())
    settings = replace(
        SETTINGS, stage0_distillation=weight, weight_decay=0.0, lr=dict(seg=3e-3, det=1e-3, cls=1e-3), warmup_fraction=0
    )
    settings = replace(settings, epochs=dict(seg=30, det=1, cls=1), batch_size=dict(seg=4, det=4, cls=4))
    data = MiniSet("seg", tiny_root, "train", find_classes(tiny_root))
    chosen = build_module.make_remedies(settings, model, "seg", ReplayBuffer(0), starting_weights())
    trainer = training.Trainer(model, data, ReplayBuffer(0), settings, "cpu", chosen)
    while not trainer.finished:
        trainer.epoch()
    images = torch.stack([training.collate([s], trainer.transform("seg"), "seg")[0][0] for s in data])
    teacher = stage0.Stage0Distillation(1.0, content)
    student_logits = teacher.logits(model.eval().head_features(images))
    drift = distances.soft_kl(student_logits, teacher.teacher_logits(images)).mean().item()
    assert (drift < 0.1) == bool(weight), drift


# --- stored logits -------------------------------------------------------------------------------------------------


def test_stored_logits_cost_nothing_until_the_network_changes(tiny_root):
    model, settings = folded(), replace(SETTINGS, derpp_weight=1.0)
    data = MiniSet("seg", tiny_root, "train", find_classes(tiny_root))
    trainer = training.Trainer(model, data, ReplayBuffer(4), settings, "cpu", [derpp.DarkExperienceReplay(1.0)])
    stages.store_exemplars(trainer, model)
    assert trainer.buffer.stored_logits["seg"].shape == (4, 5 + 10 + 21 + 10, 8, 8)
    later = context(model, "det", settings, buffer=trainer.buffer, earlier=["seg"], generator=torch.Generator())
    dark = derpp.DarkExperienceReplay(1.0)
    assert dark.step_loss(later).item() == pytest.approx(0, abs=1e-4)
    with torch.no_grad():
        model.head[-1].bias[15 : 15 + 21] += 2.0  # segmentation's channels, each by 2
        model.head[-1].bias[:15] += 7.0  # detection was not learned yet when they were stored
    assert dark.step_loss(later).item() == pytest.approx(4.0, abs=1e-2)


def test_an_empty_buffer_stores_no_logits(tiny_root):
    model, settings = folded(), replace(SETTINGS, derpp_weight=1.0)
    data = MiniSet("seg", tiny_root, "train", find_classes(tiny_root))
    trainer = training.Trainer(model, data, ReplayBuffer(0), settings, "cpu", [derpp.DarkExperienceReplay(1.0)])
    stages.store_exemplars(trainer, model)
    assert trainer.buffer.stored_logits == {}


def test_stored_logits_take_half_of_the_replayed_images(tiny_root, monkeypatch):
    settings = replace(SETTINGS, derpp_weight=1.0, replay_per_task=3)
    data = MiniSet("det", tiny_root, "train", find_classes(tiny_root))
    buffer, counts = ReplayBuffer(4), []
    buffer.store(MiniSet("seg", tiny_root, "train", data.classes), torch.Generator())
    buffer.stored_logits["seg"] = torch.zeros(4, 46, 8, 8)
    original = buffer.sample_indices
    monkeypatch.setattr(
        buffer, "sample_indices", lambda task, count, rng: counts.append(count) or original(task, count, rng)
    )
    trainer = training.Trainer(folded(), data, buffer, settings, "cpu", [derpp.DarkExperienceReplay(1.0)])
    trainer.epoch()
    assert set(counts) == {1, 2} and counts.count(1) == counts.count(2)


# --- in a run ------------------------------------------------------------------------------------------------------


def test_which_remedies_the_settings_ask_for(content, tmp_path, monkeypatch):
    model = folded()

    def names(settings, task):
        start = starting_weights(settings.widths)
        remedies = build_module.make_remedies(settings, model, task, ReplayBuffer(0), start)
        return [type(remedy).__name__ for remedy in remedies]

    everything = replace(SETTINGS, lwf_weight=1.0, had_weight=1.0, derpp_weight=1.0, ewc_weight=1.0)
    distillations = ["LearningWithoutForgetting", "HeterogeneityAware"]
    with_stores = ["DarkExperienceReplay", "ElasticWeightConsolidation"]  # they store something after stage 1 already
    assert names(everything, "det") == ["Stage0Distillation", *distillations, *with_stores]
    assert names(everything, "seg") == ["Stage0Distillation", *with_stores]
    assert names(replace(everything, joint=True), "cls") == ["Stage0Distillation"] == names(SETTINGS, "det")
    assert names(replace(SETTINGS, stage0_distillation=0.0), "cls") == []
    torch.save(mobilenet_v2(weights=None).state_dict(), tmp_path / "public.pt")
    monkeypatch.setenv(weights.VARIABLE, str(tmp_path / "public.pt"))
    assert names(replace(SETTINGS, widths="mobilenetv2"), "cls") == []
    monkeypatch.setenv(weights.VARIABLE, weights.NOTHING)
    assert names(SETTINGS, "det") == []


def test_dark_replay_with_a_single_image_is_refused():
    with pytest.raises(UserError, match="replay_per_task"):
        settings = replace(SETTINGS, derpp_weight=0.5, replay_per_task=1)
        nothing = weights.StartingWeights(weights.NOTHING)
        build_module.make_remedies(settings, folded(), "det", ReplayBuffer(0), nothing)


def test_in_the_first_stage_a_remedy_that_stores_something_adds_nothing(tiny_root):
    model = folded()
    remedies = [derpp.DarkExperienceReplay(1.0), ewc.ElasticWeightConsolidation(1.0, model, {})]
    data = MiniSet("seg", tiny_root, "train", find_classes(tiny_root))
    trainer = training.Trainer(model, data, ReplayBuffer(4), SETTINGS, "cpu", remedies)
    assert [remedy.step_loss(trainer) for remedy in remedies] == [0, 0]
    assert set(trainer.epoch().loss) == {"seg"}


@pytest.mark.slow
def test_a_stage_that_is_finished_twice_has_its_fisher_information_once(content, tiny_root, tmp_path):
    """A crash between the writes of the last state and of the model lets the stage be finished again."""
    run = Run(replace(SETTINGS, tasks=["seg", "det"], ewc_weight=1.0), tmp_path, Root(tiny_root, "--data-root"))
    run_stage(run, "seg")
    once = checkpoint.load(run.path("seg", ".state.pt"))["buffer"]["fisher"]
    run.path("seg").unlink()
    run_stage(run, "seg")
    twice = checkpoint.load(run.path("seg", ".state.pt"))["buffer"]["fisher"]
    assert any(value.any() for value in once.values())
    assert all(torch.equal(value, twice[name]) for name, value in once.items())


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        dict(lwf_weight=1.0, replay_per_task=0),
        dict(had_weight=3.0, replay_per_task=0),
        dict(ewc_weight=10.0, replay_per_task=0),
        dict(derpp_weight=0.5),
        dict(exemplar_selection="herding"),
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_stopped_run_with_a_remedy_ends_with_the_same_weights(changes, content, tiny_root, tmp_path):
    settings = replace(SETTINGS, tasks=["seg", "det"], **changes)
    straight = Run(settings, tmp_path / "a", Root(tiny_root, "--data-root"))
    run_stage(straight, "seg")
    shutil.copytree(tmp_path / "a", tmp_path / "b")  # both begin with the same stage 1
    run_stage(straight, "det")
    stopped = Run(settings, tmp_path / "b", Root(tiny_root, "--data-root"))

    def stop(trainer):
        if trainer.task == "det" and len(trainer.history) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage(stopped, "det", stop)
    run_stage(stopped, "det")
    ends = [load_model(run.path("det"))[0].state_dict() for run in (straight, stopped)]
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_a_task_alone_needs_no_other_stage(content, tiny_root, tmp_path):
    run = Run(replace(SETTINGS, tasks=["cls"]), tmp_path, Root(tiny_root, "--data-root"))
    result = run_stage(run, "cls")
    assert set(result.metrics) == {"cls"} and not run.path("seg").exists()
    assert set(result.history[0].loss) == {"cls", "remedies"}, "stage 0's distillation is a remedy"


@pytest.mark.slow
def test_joint_training_sees_all_tasks_from_the_beginning(content, tiny_root, tmp_path):
    run = Run(replace(SETTINGS, joint=True, buffer_size=6), tmp_path, Root(tiny_root, "--data-root"))
    result = run_stage(run, "cls")
    assert set(result.metrics) == {"seg", "det", "cls"} and not run.path("seg").exists()
    assert set(result.history[0].loss) == {"seg", "det", "cls", "boxes_from_masks", "remedies"}
