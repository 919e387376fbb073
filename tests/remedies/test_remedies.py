"""Remedies against forgetting: their distances by hand, and each on a problem whose solution is known."""

import itertools
import math
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from helpers import ListSet, photo
from torch import nn

from mtl_utils import checkpoint, stages, training, weights
from mtl_utils.data import MiniSet, find_classes
from mtl_utils.files import UserError
from mtl_utils.model import HEAD_CHANNELS, INPUT_CHANNELS, UnifiedModel, fold_batchnorm, whole_input
from mtl_utils.prepare.root import Root
from mtl_utils.remedies import build as build_module
from mtl_utils.remedies import derpp, distances, distillation, ewc, had, lwf
from mtl_utils.replay import ReplayBuffer
from mtl_utils.run import Run, load_model
from mtl_utils.settings import Settings
from mtl_utils.stages import run_stage
from mtl_utils.transforms import Batch, Letterbox, collate

WIDTH = INPUT_CHANNELS + HEAD_CHANNELS  # channels of the head features
SETTINGS = Settings(
    train_size=dict(seg=64, det=64, cls=64),
    eval_size=64,
    epochs=dict(seg=2, det=2, cls=2),
    batch_size=dict(seg=2, det=2, cls=2),
    buffer_size=4,
    replay_per_task=2,
)


@pytest.fixture(autouse=True)
def without_imagenet_weights(monkeypatch):
    monkeypatch.setenv(weights.VARIABLE, weights.NOTHING)


def folded(det=10, cls=10) -> UnifiedModel:
    model = UnifiedModel(det, cls)
    fold_batchnorm(model)
    return model


def batch_of(images: torch.Tensor, content: list | None = None, targets: object = ()) -> Batch:
    """A batch of images whose pictures fill them, or lie where `content` says."""
    return Batch(images, whole_input(images) if content is None else torch.tensor(content), targets)


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
    teacher = torch.randn(2, 8) if task == "cls" else torch.randn(2, 8, 4, 6)
    student = teacher + torch.randn_like(teacher)
    nothing = distances.distillation_distance(task, teacher, teacher, distances.soft_kl)
    assert nothing.shape == ((2,) if task == "cls" else (2, 4, 6)) and nothing.abs().max() < 1e-5
    assert distances.distillation_distance(task, student, teacher, distances.soft_kl).sum() > 0


def test_boxes_and_classes_count_in_proportion_to_the_teachers_confidence():
    teacher, student = torch.zeros(1, 7, 1, 2), torch.zeros(1, 7, 1, 2)
    teacher[0, 4, 0] = torch.tensor([20.0, -20.0])
    student[0, 4, 0] = teacher[0, 4, 0]
    student[0, 0] = 3.0  # cx is off by 3 in both cells: smooth L1 is 2.5
    found = distances.detection_distance(student, teacher, distances.soft_kl)
    assert found[0, 0].tolist() == pytest.approx([2.5, 0.0], abs=1e-4)


def test_the_labels_of_a_teacher_by_hand():
    """Its best class in each cell or image; of detection, where its confidence is above .3."""
    logits = torch.tensor([[1.0, 3.0, 2.0], [5.0, 0.0, 1.0]])
    assert distances.pseudo_labels("cls", logits).tolist() == [1, 0]
    cells = logits.T.reshape(1, 3, 1, 2)  # the same two rows as two cells
    assert distances.pseudo_labels("seg", cells).tolist() == [[[1, 0]]]
    detection = torch.zeros(1, 7, 1, 2)
    detection[0, 4, 0] = torch.tensor([0.31, 0.29]).logit()
    assert distances.pseudo_labels("det", detection).tolist() == [[[1, 0]]]


def test_classes_are_balanced_by_geometric_means_as_in_the_published_code_of_had():
    """Class 0: 2 (of 1, 2, 4; the 0 is left out); class 3: 6 (of 4 and 9); classes 1 and 2 do not occur: 0."""
    gaps, labels = torch.tensor([1.0, 2.0, 4.0, 0.0, 4.0, 9.0]), torch.tensor([0, 0, 0, 0, 3, 3])
    powers = [math.exp(-mean) for mean in (2, 0, 0, 6)]
    expected = (2 * powers[0] + 6 * powers[3]) / sum(powers) / 4
    assert distances.balanced_over_classes(gaps, labels, 4).item() == pytest.approx(expected)


def test_the_weights_of_the_classes_have_no_gradient():
    gaps = torch.tensor([1.0, 4.0], requires_grad=True)
    distances.balanced_over_classes(gaps, torch.tensor([0, 1]), 2).backward()
    weights = torch.tensor([-1.0, -4.0]).softmax(0)
    assert torch.allclose(gaps.grad, weights / 2)


def test_of_no_distances_above_zero_the_geometric_mean_is_zero_with_a_gradient():
    gaps = torch.zeros(3, requires_grad=True)
    mean = distances.geometric_mean(gaps)
    mean.backward()
    assert mean.item() == 0 and gaps.grad.tolist() == [0, 0, 0]


def test_the_halves_of_a_number_count_alike():
    gaps, upper = torch.tensor([1.0, 1.0, 1.0, 5.0, 7.0]), torch.tensor([False, False, False, True, True])
    assert distances.sum_of_halves(gaps, upper).item() == pytest.approx(1 + 6)
    assert distances.sum_of_halves(gaps, torch.zeros(5, dtype=torch.bool)).item() == pytest.approx(3)


def test_salient_cells_lie_at_the_edges_of_the_distances():
    """A step between the columns 2 and 3: the two columns beside it have the edge, away from the borders."""
    gaps = torch.zeros(1, 7, 9)
    gaps[:, :, 3:] = 10.0
    gaps[:, :, 6:] = 0.0
    salient = distances.salient_cells(gaps)[0, 3]  # a row far from the upper and lower border
    assert salient.tolist() == [False, False, True, True, False, True, True, False, False]
    assert not distances.salient_cells(torch.zeros(1, 6, 6)).any(), "nothing stands out of nothing"


def test_had_by_hand():
    """One image of two cells and two classes, then one cell of detection's."""
    teacher = torch.tensor([[[[9.0, 0.0]], [[0.0, 9.0]]]])  # (1, 2, 1, 2): classes 0 and 1
    student = torch.tensor([[[[1.0, 2.0]], [[0.0, 0.0]]]])
    gaps = torch.tensor([math.log(1 + math.exp(-1.0)), math.log(1 + math.exp(2.0))])
    balanced = ((-gaps).softmax(0) * gaps).mean()
    kernel = torch.tensor(distances.SOBEL)
    edges = F.conv2d(gaps.view(1, 1, 1, 2), torch.stack([kernel, kernel.T])[:, None], padding=1).norm(dim=1).flatten()
    at_edges = (gaps * (edges > edges.min())).mean()
    found = had.HeterogeneityAware(1.0, folded()).distance("seg", student, teacher)
    assert found.item() == pytest.approx(((balanced + at_edges) / 2).item())


# --- elastic weight consolidation ----------------------------------------------------------------------------------


def test_fisher_information_is_the_mean_squared_gradient():
    class Linear(nn.Linear):
        """A model that is shown a batch of two numbers."""

        def forward(self, images, content):
            return super().forward(images)

    model = Linear(2, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    batches = [Batch(torch.tensor([[1.0, 0.0]]), None, 0.0), Batch(torch.tensor([[2.0, 3.0]]), None, 1.0)]
    fisher = ewc.fisher_information(model, batches, lambda outputs, target: (outputs - target).square().sum())
    # gradients 2 (y - t) x: 2 * 1 * (1, 0) and 2 * 4 * (2, 3)
    assert fisher["weight"].tolist() == [[(2**2 + 16**2) / 2, 24**2 / 2]]


def test_fisher_information_is_that_of_each_letterboxed_image_where_its_picture_is(monkeypatch):
    dataset = ListSet("cls", [(photo(32, 64), {"label": torch.tensor(0)}), (photo(64, 48), {"label": torch.tensor(2)})])
    model, seen = folded(3, 3), []
    model.register_forward_hook(lambda _, inputs, __: seen.append(inputs))
    trainer = context(model, "cls", dataset=dataset, losses={"cls": lambda outputs, _: outputs.classification.sum()})
    fisher = ewc.task_fisher(trainer, model)
    assert [content.tolist() for _, content in seen] == [[[0, 0, 64, 32]], [[0, 0, 48, 64]]]
    expected = collate(dataset.samples, Letterbox(64), "cls").images
    assert torch.equal(torch.cat([images for images, _ in seen]), expected)
    assert fisher["head.2.bias"][-3:].tolist() == pytest.approx([1, 1, 1]), "the sum rises as the bias does"


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

    64 cells of 384 random features each: a linear layer can fit any labels of them.
    """
    model, hidden, batch = folded(), torch.randn(4, WIDTH, 4, 4), batch_of(torch.rand(4, 3, 32, 32))
    nn.init.normal_(model.head[-1].weight, std=0.3)
    distil = remedy(1.0, model)
    monkeypatch.setattr(distil.teacher, "head_features", lambda *_: hidden)
    best = distil.teacher_map(batch)[:, 15:36].argmax(1)
    agreement = lambda: (model.head[-1](hidden)[:, 15:36].argmax(1) == best).float().mean().item()  # noqa: E731
    with torch.no_grad():
        model.head[-1].weight += 0.3 * torch.randn_like(model.head[-1].weight)
    before, optimizer = agreement(), torch.optim.Adam(model.head[-1].parameters(), 0.02)
    for _ in range(300):
        optimizer.zero_grad()
        distil.batch_loss(context(model, "cls"), "cls", batch, hidden).backward()
        optimizer.step()
    assert before < 0.5 and agreement() > 0.8


def test_soft_distillation_costs_nothing_where_nothing_has_changed():
    model, batch = folded(), batch_of(torch.rand(2, 3, 64, 64), [[0.0, 0, 64, 64], [0, 0, 32, 64]])
    distil = lwf.LearningWithoutForgetting(1.0, model)
    features = model.head_features(batch.images, batch.content)
    for tasks in (["seg", "det", "cls"], ["cls", "det", "seg"]):
        trainer = context(model, tasks[-1], replace(SETTINGS, tasks=tasks))
        assert distil.batch_loss(trainer, tasks[-1], batch, features).item() == pytest.approx(0, abs=1e-5)


def test_only_earlier_tasks_are_distilled_and_not_on_their_own_images(monkeypatch):
    model, batch, asked = folded(), batch_of(torch.rand(1, 3, 32, 32)), []
    distil = lwf.LearningWithoutForgetting(1.0, model)
    monkeypatch.setattr(distil, "distance", lambda task, student, _: asked.append((task, student.shape[1])) or 0.0)
    hidden = model.head_features(batch.images, batch.content)
    distil.batch_loss(context(model, "cls"), "cls", batch, hidden)
    distil.batch_loss(context(model, "cls"), "seg", batch, hidden)
    distil.batch_loss(context(model, "det"), "seg", batch, hidden)
    assert asked == [("seg", 21), ("det", 15), ("det", 15)]


@pytest.mark.parametrize("remedy", [lwf.LearningWithoutForgetting, had.HeterogeneityAware])
def test_the_class_of_an_image_is_distilled_from_its_picture_alone(remedy):
    """What the cells of the padding say changes nothing: the picture is the left half."""
    model, batch = folded(), batch_of(torch.rand(1, 3, 64, 64), [[0.0, 0, 32, 64]])
    nn.init.normal_(model.head.last.weight)
    distil = remedy(1.0, model)
    trainer = context(model, "seg", replace(SETTINGS, tasks=["cls", "seg"]))
    hidden = model.head_features(batch.images, batch.content)
    moved = hidden + torch.randn_like(hidden)
    loss = distil.batch_loss(trainer, "seg", batch, moved)
    padding_moved_more = moved.clone()
    padding_moved_more[..., 4:] += 3 * torch.randn(1, WIDTH, 8, 4)
    assert loss > 0
    assert distil.batch_loss(trainer, "seg", batch, padding_moved_more).item() == pytest.approx(loss.item(), rel=1e-5)


def test_the_teacher_is_told_where_the_pictures_are():
    model, batch = folded(), batch_of(torch.rand(2, 3, 64, 64), [[0.0, 0, 64, 32], [8, 0, 40, 64]])
    distil, seen = lwf.LearningWithoutForgetting(1.0, model), []
    distil.teacher.backbone.register_forward_hook(lambda _, inputs, __: seen.append(inputs[1]))
    distil.batch_loss(context(model, "det"), "det", batch, torch.rand(2, WIDTH, 8, 8))
    (content,) = seen
    assert torch.equal(content, batch.content)


def test_the_logits_that_are_distilled_are_those_that_the_tasks_read():
    model, contents = folded(), torch.tensor([[0.0, 0, 64, 64], [8, 0, 40, 60]])
    features, deep = model.features(torch.rand(2, 3, 64, 64), contents)
    hidden = model.head.head_features(features)
    outputs, grid = model.outputs(hidden, deep, contents), model.head.last(hidden)
    for task, expected in (("det", outputs.detection), ("seg", outputs.segmentation), ("cls", outputs.classification)):
        assert torch.equal(distillation.task_logits(grid, model.head.split, task, contents), expected)


def test_the_teacher_neither_learns_nor_changes():
    model, batch = folded(), batch_of(torch.rand(2, 3, 64, 64))
    distil = had.HeterogeneityAware(1.0, model)
    before = {k: v.clone() for k, v in distil.teacher.state_dict().items()}
    with torch.no_grad():
        model.head[-1].weight += 1.0
    features = model.head_features(batch.images, batch.content)
    distil.batch_loss(context(model, "det"), "det", batch, features).backward()
    assert all(torch.equal(v, before[k]) for k, v in distil.teacher.state_dict().items())
    assert all(p.grad is None for p in distil.teacher.parameters())
    assert model.head[-1].weight.grad.abs().sum() > 0


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


def test_stored_logits_are_compared_with_those_of_the_letterboxed_images_where_their_pictures_are():
    samples = [(photo(32, 64), {"label": torch.tensor(0)}), (photo(64, 48), {"label": torch.tensor(0)})]
    buffer, model, seen = ReplayBuffer(2), folded(), []
    buffer.samples["cls"], buffer.stored_logits["cls"] = samples, torch.zeros(2, 46, 8, 8)
    model.backbone.register_forward_hook(lambda _, inputs, __: seen.append(inputs[1]))
    settings = replace(SETTINGS, tasks=["cls", "seg"], derpp_weight=1.0, replay_per_task=4)
    later = context(model, "seg", settings, buffer=buffer, earlier=["cls"], generator=torch.Generator())
    derpp.DarkExperienceReplay(1.0).step_loss(later)
    assert [content.tolist() for content in seen] == [[[0, 0, 64, 32], [0, 0, 48, 64]]]


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


def test_which_remedies_the_settings_ask_for():
    model = folded()

    def names(settings, task):
        remedies = build_module.make_remedies(settings, model, task, ReplayBuffer(0))
        return [type(remedy).__name__ for remedy in remedies]

    everything = replace(SETTINGS, lwf_weight=1.0, had_weight=1.0, derpp_weight=1.0, ewc_weight=1.0)
    distillations = ["LearningWithoutForgetting", "HeterogeneityAware"]
    with_stores = ["DarkExperienceReplay", "ElasticWeightConsolidation"]  # they store something after stage 1 already
    assert names(everything, "det") == [*distillations, *with_stores]
    assert names(everything, "seg") == with_stores
    assert names(replace(everything, joint=True), "cls") == [] == names(SETTINGS, "det")
    assert names(replace(SETTINGS, had_weight=1.0), "cls") == ["HeterogeneityAware"]


def test_dark_replay_with_a_single_image_is_refused():
    with pytest.raises(UserError, match="replay_per_task"):
        settings = replace(SETTINGS, derpp_weight=0.5, replay_per_task=1)
        build_module.make_remedies(settings, folded(), "det", ReplayBuffer(0))


def test_in_the_first_stage_a_remedy_that_stores_something_adds_nothing(tiny_root):
    model = folded()
    remedies = [derpp.DarkExperienceReplay(1.0), ewc.ElasticWeightConsolidation(1.0, model, {})]
    data = MiniSet("seg", tiny_root, "train", find_classes(tiny_root))
    trainer = training.Trainer(model, data, ReplayBuffer(4), SETTINGS, "cpu", remedies)
    assert [remedy.step_loss(trainer) for remedy in remedies] == [0, 0]
    assert set(trainer.epoch().loss) == {"seg"}


@pytest.mark.slow
def test_a_stage_that_is_finished_twice_has_its_fisher_information_once(tiny_root, tmp_path, one_thread):
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
def test_a_stopped_run_with_a_remedy_ends_with_the_same_weights(changes, tiny_root, tmp_path, one_thread):
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


def test_a_task_alone_needs_no_other_stage(tiny_root, tmp_path):
    run = Run(replace(SETTINGS, tasks=["cls"]), tmp_path, Root(tiny_root, "--data-root"))
    result = run_stage(run, "cls")
    assert set(result.metrics) == {"cls"} and not run.path("seg").exists()
    assert set(result.history[0].loss) == {"cls"}


@pytest.mark.slow
def test_joint_training_sees_all_tasks_from_the_beginning(tiny_root, tmp_path):
    run = Run(replace(SETTINGS, joint=True, buffer_size=6), tmp_path, Root(tiny_root, "--data-root"))
    result = run_stage(run, "cls")
    assert set(result.metrics) == {"seg", "det", "cls"} and not run.path("seg").exists()
    assert set(result.history[0].loss) == {"seg", "det", "cls", "boxes_from_masks"}
