"""The diagrams say what the model and the settings are, and every text can be read."""

from itertools import combinations

import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.patches import FancyBboxPatch

from mtl_utils.model import ContentGrid, UnifiedModel, count_parameters, fold_batchnorm, whole_input
from mtl_utils.plots.diagrams import architecture, layer_table, learning_table, training_flow
from mtl_utils.plots.style import use_style
from mtl_utils.run import Run
from mtl_utils.settings import PROFILES, Settings, get_settings
from mtl_utils.tasks import TASKS

SIZE = 64


@pytest.fixture(autouse=True)
def style():
    """The style that the notebooks set, as long as a test lasts."""
    with plt.rc_context():
        use_style()
        yield
    plt.close("all")


@pytest.fixture(scope="module", params=[(3, 4), (10, 10)], ids=["few classes", "ten classes"])
def model(request) -> UnifiedModel:
    return UnifiedModel(*request.param)


def texts(figure) -> list[str]:
    return [t.get_text() for t in figure.axes[0].texts if t.get_text()]


def assert_legible(figure) -> None:
    """At least 9 points, all inside the figure and inside the blocks they stand in, no text on another one."""
    renderer = figure.canvas.get_renderer()
    width, height = figure.get_size_inches() * figure.dpi
    shown = [t for t in figure.axes[0].texts if t.get_text()]
    boxes = [(t.get_text(), t.get_window_extent(renderer)) for t in shown]
    frames = [p.get_window_extent(renderer) for p in figure.axes[0].patches if isinstance(p, FancyBboxPatch)]
    assert figure.get_size_inches()[0] <= 11 and min(t.get_fontsize() for t in shown) >= 9
    for text, box in boxes:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, text
        around = [f for f in frames if f.contains((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2)]
        assert all(f.x0 < box.x0 and f.y0 < box.y0 and f.x1 > box.x1 and f.y1 > box.y1 for f in around), text
    for (one, a), (other, b) in combinations(boxes, 2):
        x, y = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        assert min(x, y) < 0.02 * figure.dpi, (one, other)


def test_table_adds_up_to_the_model(model):
    *rows, total = layer_table(model, SIZE)
    assert total[0] == "Total"
    assert sum(row[3] for row in rows) == total[3] == count_parameters(model)


def test_the_table_of_what_learns_has_a_number_for_each_part_and_follows_freezing():
    model = UnifiedModel(3, 4)
    everything = learning_table(model)
    assert [row[:2] for row in everything] == [(row[0], row[3]) for row in layer_table(model, SIZE)]
    assert all(count == learning for _, count, learning in everything)
    model.backbone.trunk.requires_grad_(False)
    model.backbone.fusion.requires_grad_(False)
    *rows, total = learning_table(model)
    frozen = {name for name, _, learning in rows if learning == 0}
    assert frozen == {"Learning to downsample", "Global features", "Deep global features", "Feature fusion"}
    kept = [count for name, count, _ in rows if name not in frozen]
    assert total == ("Total", count_parameters(model), sum(kept))


def test_multiply_adds_are_those_of_the_convolutions(model):
    """By hand: a convolution multiplies each output by its kernel times the channels that it reads."""
    table = {row[0]: row[4] for row in layer_table(model, SIZE)}
    cells = (SIZE // 8) ** 2
    _, second, last = model.head
    width = second[1][0].out_channels
    kernel = second[0][0].kernel_size[0]
    assert table["Head layer 2"] == cells * width * (kernel**2 + width), "depthwise, then 1 x 1"
    assert table["Head layer 3"] == cells * last.out_channels * last.in_channels
    skip = model.class_skip
    assert table["Class skip"] == cells // 16 * skip.out_channels * skip.in_channels
    assert table["Total"] == sum(count for name, count in table.items() if name != "Total")


def test_table_shapes_are_those_of_a_forward(model):
    with torch.no_grad():
        images = torch.zeros(1, 3, SIZE, SIZE)
        low, middle, deep = model.eval().backbone.trunk(images)
        grid = ContentGrid(whole_input(images), images.shape[-2:], deep.shape[-2:])
        pooled = model.backbone.pooling(deep, grid)
        maps = [low, middle, deep, pooled, model.backbone.fusion(low, middle, pooled)]
        maps += [model.backbone.skip(deep), model.class_skip(deep)]
        features, _ = model.features(images, whole_input(images))
        first, second, _ = model.head
        maps += [first(features), second(first(features)), model.head(features)]
    assert [row[1] for row in layer_table(model, SIZE)[:-1]] == [" × ".join(map(str, x.shape[1:])) for x in maps]


def test_table_says_what_a_part_is():
    table = {row[0]: row[2] for row in layer_table(UnifiedModel(3, 4), SIZE)}
    assert table["Learning to downsample"] == "conv 3×3, 5 bottlenecks"
    assert table["Deep global features"] == "5 bottlenecks, conv 1×1"
    assert table["Pyramid pooling"] == "pooled to 1, 2, 3, 6 bins a side, conv 1×1"
    assert (
        table["Feature fusion"] == "sum of 3 branches, 4 bottlenecks"
        and table["Skip connection"] == "conv 1×1, BatchNorm"
    )
    assert table["Head layer 1"] == table["Head layer 2"] == "separable conv" and table["Head layer 3"] == "conv 1×1"
    assert table["Total"] == "trunk of EfficientNet-Lite0"


def test_measuring_leaves_the_model_as_it_was(model):
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    layer_table(model, SIZE)
    assert model.training and not any(m._forward_hooks for m in model.modules())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("size", [SIZE, 512])
def test_architecture_shows_every_count_and_shape(model, size):
    figure = architecture(model, size)
    shown = texts(figure)
    *rows, total = layer_table(model, size)
    for name, shape, _, count, _ in rows:
        wanted = {name, shape, f"{count:,} parameters"}
        in_a_block = wanted <= set(shown)
        in_a_line = any(all(word in line for word in wanted) for line in shown)
        assert in_a_line if name == "Class skip" else in_a_block
    assert f"{total[3]:,} parameters" in shown[0]
    det, seg, cls = model.head.split
    assert {f"5 + {det - 5}", str(seg), str(cls), f"{cls} class scores", f"{seg} × {size} × {size}"} <= set(shown)
    assert shown.count("skip") == 1, "past the head's first layers"
    assert_legible(figure)


def test_architecture_of_a_folded_model():
    model = UnifiedModel(10, 10)
    fold_batchnorm(model)
    shown = " ".join(texts(architecture(model, SIZE)))
    assert f"{count_parameters(model):,} parameters" in shown and "BatchNorm" not in shown


EXTREMES = [
    Settings(buffer_size=240, replay_per_task=10),
    Settings(batch_size=dict.fromkeys(TASKS, 64), replay_per_task=1, fold_batchnorm=False),
]


@pytest.mark.parametrize("settings", [*PROFILES.values(), *EXTREMES])
def test_training_flow_shows_the_settings(settings):
    figure = training_flow(settings)
    shown = "\n".join(texts(figure))
    for i, task in enumerate(TASKS):
        size = settings.train_size[task]
        assert f"{settings.epochs[task]} epochs, {size} × {size} pixels" in shown
        replay = f" + {i * settings.replay_per_task} replayed" if i else ""
        assert f"one step: {settings.batch_size[task]} new{replay} images" in shown
    assert f"up to {settings.buffer_size} training images" in shown and f"{settings.replay_per_task} per step" in shown
    assert ("BatchNorm folded" in shown) == settings.fold_batchnorm
    assert shown.count("mIoU") == 3 and shown.count("mAP@50") == 2 and shown.count("Top-1") == 1
    assert_legible(figure)


@pytest.mark.parametrize("none", [{"replay_per_task": 0}, {"buffer_size": 0}])
def test_training_flow_without_replay(none):
    figure = training_flow(get_settings("smoke", **none))
    assert "No replay" in texts(figure)[0] and not any("per step" in t for t in texts(figure))
    assert_legible(figure)


def test_training_flow_names_the_files_of_a_run(tmp_path):
    run = Run.__new__(Run)  # a folder is all that file names need
    run.folder = tmp_path
    assert {run.path(task).name for task in TASKS} <= set(texts(training_flow(Settings())))
