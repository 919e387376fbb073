"""The autopsy of a forgetful network: shares by hand, models that differ in a known way, and the line that replays."""

import copy
from types import SimpleNamespace

import matplotlib.pyplot as plt
import pytest
import torch
from helpers import SETTINGS, photo
from torchvision import tv_tensors

from mtl_utils import weights
from mtl_utils.evaluation import class_iou
from mtl_utils.experiments import autopsy
from mtl_utils.model import UnifiedModel, fold_batchnorm
from mtl_utils.plots import autopsy as figures
from mtl_utils.prepare.root import Root
from mtl_utils.run import Run
from mtl_utils.stages import run_stage


def folded_model() -> UnifiedModel:
    torch.manual_seed(0)
    model = UnifiedModel(3, 3)
    fold_batchnorm(model)
    return model.eval()


def masks(count: int) -> list:
    return [(photo(40, 64), {"mask": tv_tensors.Mask(torch.randint(0, 21, (40, 64)).byte())}) for _ in range(count)]


def test_fates_by_hand():
    """Of 100 pixels of objects 50 are right, 20 are another object, 30 background; background itself is left out."""
    matrix = torch.tensor([[800, 9, 9], [20, 30, 10], [10, 10, 20]])
    shares = autopsy.fates(matrix)
    assert shares == {
        "right": pytest.approx(0.5),
        "another object": pytest.approx(0.2),
        "background": pytest.approx(0.3),
    }


def test_rows_that_are_scaled_keep_their_direction():
    before = folded_model()
    after = copy.deepcopy(before)
    first_mask = before.head.split[0]
    with torch.no_grad():
        after.head.last.weight[first_mask:] *= 0.9
        after.head.last.weight[0] *= -1
    cosines = autopsy.row_cosines(before, after)
    assert cosines["seg"].shape == (21,) and torch.allclose(cosines["seg"], torch.ones(21))
    assert cosines["det"][0] == pytest.approx(-1) and cosines["det"][1] == pytest.approx(1)


def test_features_change_behind_the_part_that_changed_alone():
    before = folded_model()
    after = copy.deepcopy(before)
    with torch.no_grad():
        after.head[1][1][0].weight *= 2  # a layer whose activation keeps the factor
        after.head[1][1][0].bias *= 2
    changes = autopsy.feature_changes(before, after, [photo(40, 64), photo(64, 30)], 64)
    assert list(changes) == ["trunk", "pooling", "fusion", "skip", "head, layer 1", "head, layer 2"]
    assert [changes[part] for part in list(changes)[:4]] == [0, 0, 0, 0]
    assert changes["head, layer 2"] == pytest.approx(1, abs=1e-4)


def test_a_change_counts_as_far_as_the_mask_channels_read_it(monkeypatch):
    """Only the first channel changes, by three times its value; of the masks, one row reads it and nothing else."""
    before = folded_model()
    after = copy.deepcopy(before)
    old = torch.ones(1, before.head.last.in_channels, 8, 8)
    new = old.clone()
    new[:, 0] += 3
    monkeypatch.setattr(before, "head_features", lambda images, content: old)
    monkeypatch.setattr(after, "head_features", lambda images, content: new)
    first = before.head.split[0]
    with torch.no_grad():
        before.head.last.weight[first : first + 21] = 1.0  # what all classes have in common counts for nothing
        before.head.last.weight[first + 1, 0] += 1.0
    changes = list(autopsy.changes_read(before, after, [photo(64, 64)], 64).values())
    assert changes == pytest.approx([3 / old.shape[1] ** 0.5, 3, 0], rel=1e-4)


def test_the_difference_of_two_networks_is_that_of_their_miou_and_its_interval_that_of_equal_images():
    """Two classes: IoU of 8/10 and 4/6, then 4/10 and 0/6; all images are alike, so that every resample is, too."""
    one = torch.zeros(5, 21, 21, dtype=torch.int64)
    one[:, 0, 0], one[:, 1, 1], one[:, 0, 1], one[:, 1, 0] = 8, 4, 1, 1
    other = torch.zeros_like(one)
    other[:, 0, 0], other[:, 0, 1] = 4, 6
    estimate = autopsy.miou_difference(one, other)
    expected = (8 / 10 + 4 / 6) / 2 - (4 / 10 + 0 / 6) / 2
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((expected,) * 3)
    one[0] = other[0]
    spread = autopsy.miou_difference(one, other)
    assert spread.low < spread.value < spread.high < expected + 1e-9


def test_both_networks_are_resampled_alike():
    """Two networks that differ by the same in every resample: images of two kinds, all a tenth better."""
    one = torch.zeros(6, 21, 21, dtype=torch.int64)
    one[::2, 0, 0], one[1::2, 0, 0] = 90, 50
    one[::2, 1, 0], one[1::2, 1, 0] = 10, 50
    assert autopsy.miou_difference(one, one.clone()) == autopsy.Estimate(0.0, 0.0, 0.0)


def test_each_image_has_its_own_matrix():
    samples = [*masks(1), (photo(64, 30), {"mask": tv_tensors.Mask(torch.full((64, 30), 5, dtype=torch.uint8))})]
    model = folded_model()
    together = autopsy.pixels_by_image(model, samples, 64)
    alone = [autopsy.pixels_by_image(model, [sample], 64)[0] for sample in samples]
    assert torch.equal(together.sum(2), torch.stack(alone).sum(2)), "true pixels by class"
    assert (together - torch.stack(alone)).abs().sum() < 0.02 * together.sum(), "but for rounding in a batch"


def test_rows_of_another_model_are_those_of_one_task_alone():
    before = folded_model()
    after = copy.deepcopy(before)
    with torch.no_grad():
        after.head.last.weight.normal_()
        after.head.last.bias.normal_()
    mixed = autopsy.with_rows_of(after, before, "seg")
    first, count = before.head.split[0], 21
    masks = slice(first, first + count)
    for name in ("weight", "bias"):
        values, old, new = (getattr(model.head.last, name) for model in (mixed, before, after))
        assert torch.equal(values[masks], old[masks]) and not torch.equal(values[masks], new[masks])
        assert torch.equal(values[:first], new[:first]) and torch.equal(values[first + count :], new[first + count :])


def test_the_path_begins_and_ends_with_the_two_models():
    before, samples = folded_model(), masks(3)
    after = copy.deepcopy(before)
    with torch.no_grad():
        after.head.last.weight.normal_()
    scores = autopsy.scores_on_the_path(before, after, samples, 64)
    assert list(scores) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    for share, model in ((0.0, before), (1.0, after)):
        matrix = autopsy.pixels_by_image(model, samples, 64).sum(0)
        assert scores[share] == pytest.approx(class_iou(matrix).nanmean().item())


def test_background_that_is_called_an_object():
    matrix = torch.zeros(21, 21, dtype=torch.int64)
    matrix[0, 0], matrix[0, 5], matrix[0, 7], matrix[3, 0] = 60, 30, 10, 50
    assert autopsy.invented(matrix) == pytest.approx(0.4), "30 and 10 of 100; a true object does not count"


def test_the_replayed_batches_are_there_only_with_replay(monkeypatch):
    seen = []
    trainer = SimpleNamespace(
        task="det", loader=lambda: iter(range(31)), replay=lambda: {"seg": "old"}, step=seen.append, model=None
    )
    monkeypatch.setattr(autopsy, "score_now", lambda trainer, val: len(seen) / 100)
    assert autopsy.take_steps(trainer, [], with_replay=False) == {40: 0.4, 62: 0.62}
    assert seen == [{"det": number} for number in range(31)] * 2, "two epochs"
    seen.clear()
    autopsy.take_steps(trainer, [], with_replay=True)
    assert seen[0] == {"det": 0, "seg": "old"}
    seen.clear()
    autopsy.take_steps(trainer, [], with_replay=True, with_detection=False)
    assert seen == [{"seg": "old"}] * 62, "as many steps on masks alone"


def test_the_time_of_a_task_is_the_median_over_five_steps(monkeypatch):
    """The first step is slow, and no more batches are loaded than are timed."""
    loaded, seconds = [], iter([9.0, 8.0, 1.0, 0.4, 2.0, 0.5, 3.0, 0.6, 4.0, 0.7])
    trainer = SimpleNamespace(
        earlier=["seg"],
        task="det",
        loader=lambda: (loaded.append(number) for number in range(60)),
        replay=lambda: {"seg": "old"},
    )
    monkeypatch.setattr(autopsy, "timed", lambda function: next(seconds))
    assert autopsy.seconds_by_task(trainer) == {"seg": 3.0, "det": 0.6}
    assert len(loaded) == 5


@pytest.mark.slow
def test_the_steps_start_from_stage_1_and_leave_the_run_as_it_is(tiny_root, tmp_path, monkeypatch):
    monkeypatch.setenv(weights.VARIABLE, weights.NOTHING)
    run = Run(SETTINGS, tmp_path, Root(tiny_root, "--data-root"))
    run_stage(run, "seg")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    trainer = autopsy.begin_stage(run, "det")
    autopsy.take_steps(trainer, run.data("seg", "val").samples, with_replay=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    changes = autopsy.row_cosines(run.model("seg"), trainer.model)
    assert changes["det"].min() < 1
    changed = autopsy.begin_stage(run, "det", lwf_weight=1.0, freeze_trunk=False)
    assert changed.remedies and next(changed.model.backbone.trunk.parameters()).requires_grad
    seconds = autopsy.seconds_by_task(autopsy.begin_stage(run, "det"))
    assert list(seconds) == ["seg", "det"] and min(seconds.values()) > 0


def test_the_figures_hold_the_numbers():
    fates = {"before": {"right": 0.5, "another object": 0.2, "background": 0.3}}
    texts = [text.get_text() for text in figures.fate_bars(fates).axes[0].texts]
    assert texts == ["50%", "20%", "30%"]
    axis = figures.score_curves({"without": {0: 0.5, 15: 0.2}, "with": {0: 0.5, 15: 0.49}}).axes[0]
    assert [line.get_ydata()[-1] for line in axis.lines] == [0.2, 0.49]
    many = figures.score_curves({name: {0: 0.5, 15: 0.2} for name in "abcdefg"})
    many.canvas.draw()
    assert len(many.axes[0].lines) == 7, "no curve is left out"
    axis = figures.change_bars({"without": {"trunk": 0.0, "head": 0.4}, "with": {"trunk": 0.0, "head": 0.1}}).axes[0]
    assert [bar.get_height() for bar in axis.patches] == [0.0, 0.4, 0.0, 0.1]
    axis = figures.path_curve({0.0: 0.5, 1.0: 0.1}).axes[0]
    assert list(axis.lines[0].get_xdata()) == [0.0, 1.0]
    plt.close("all")


def test_pictures_have_a_row_a_photograph_and_a_column_a_network():
    networks, samples = {}, masks(2)
    for name, channel in (("before", 8), ("after", 12)):
        networks[name] = folded_model()
        with torch.no_grad():
            networks[name].head.last.bias[networks[name].head.split[0] + channel] = 100  # always this class
    figure = figures.mask_pictures(networks, samples, 64)
    assert len(figure.axes) == 6 and [axis.get_title() for axis in figure.axes[:3]] == ["truth", "before", "after"]
    assert [[text.get_text() for text in axis.texts] for axis in figure.axes[1:3]] == [["cat"], ["dog"]]
    plt.close("all")


def test_each_class_is_named_on_its_largest_area_and_a_tiny_one_is_not():
    mask = torch.zeros(40, 60, dtype=torch.uint8)
    mask[0:4, 0:4] = 8  # a small cat
    mask[20:40, 30:60] = 8
    mask[39, 0] = 12  # one pixel of a dog
    axis = plt.figure().add_subplot()
    figures.draw_named_mask(axis, photo(40, 60), mask)
    (name,) = axis.texts
    assert name.get_text() == "cat" and name.get_position() == (44.5, 29.5)
    plt.close("all")


def test_parts_are_exchanged_one_at_a_time():
    before, samples = folded_model(), masks(2)
    after = copy.deepcopy(before)
    with torch.no_grad():
        for value in after.parameters():
            value.add_(0.1 * torch.randn_like(value))
    mixed = autopsy.with_part_of(before, after, "fusion").state_dict()
    of_after = {name for name, value in mixed.items() if not torch.equal(value, before.state_dict()[name])}
    assert of_after and all(name.startswith("backbone.fusion.") for name in of_after)
    assert all(torch.equal(mixed[name], after.state_dict()[name]) for name in of_after)
    table = autopsy.part_swaps(before, before, samples, 64)
    assert list(table.index) == ["pooling", "fusion", "skip", "head, layer 1", "head, layer 2"]
    assert (table == autopsy.mask_score(before, samples, 64)).all(axis=None), "equal networks exchange nothing"
