import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import mobilenet_v2

from mtl_utils import files
from mtl_utils.model import (
    CLASS_GAIN,
    CONFIDENCE_PRIOR,
    MEAN,
    NORM_EPS,
    STD,
    Bottleneck,
    ContentGrid,
    PyramidPooling,
    SameConv,
    Separable,
    Trunk,
    UnifiedModel,
    count_parameters,
    fold_batchnorm,
    mean_over_content,
    place_model,
    task_channels,
    whole_input,
)
from mtl_utils.weights import load_imagenet, load_weights

DET, SEG, CLS = 10, 21, 10


@pytest.fixture
def model():
    torch.manual_seed(0)
    network = randomise_norms(UnifiedModel(DET, CLS)).eval()
    nn.init.normal_(network.class_skip.weight, std=0.01)  # as training would
    return network


def randomise_norms(module: nn.Module) -> nn.Module:
    """Give every BatchNorm statistics and factors of its own, as training would."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean, std=0.2)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.2)
    return module


def norms(module: nn.Module) -> int:
    return sum(isinstance(layer, nn.BatchNorm2d) for layer in module.modules())


def same_outputs(a, b, tolerance: float = 1e-4) -> bool:
    return all(torch.allclose(x, y, atol=tolerance, rtol=tolerance) for x, y in zip(a, b, strict=True))


# ---------------------------------------------------------------- the head is one branch


def convolutions(module: nn.Module) -> list[nn.Conv2d]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]


def test_head_has_three_layers_in_one_branch(model):
    assert isinstance(model.head, nn.Sequential) and len(model.head) == 3
    first, second, last = model.head
    assert isinstance(first, Separable) and isinstance(second, Separable) and isinstance(last, nn.Conv2d)
    assert convolutions(first)[-1].out_channels == convolutions(second)[0].in_channels, "a chain"
    past = convolutions(first)[0].in_channels
    assert last.in_channels == past + convolutions(second)[-1].out_channels, "and past it what enters the head"
    assert last.out_channels == 5 + DET + SEG + CLS and last.kernel_size == (1, 1)


def test_an_inner_layer_of_the_head_filters_each_channel_and_then_mixes_them():
    """Depthwise, pointwise 1 x 1, and one activation, at the end."""
    depthwise, pointwise = convolutions(Separable(6, 4, 5))
    assert (depthwise.kernel_size, depthwise.groups, depthwise.out_channels) == ((5, 5), 6, 6)
    assert (pointwise.kernel_size, pointwise.groups, pointwise.out_channels) == ((1, 1), 1, 4)
    activations = [isinstance(layer, nn.ReLU6) for block in Separable(6, 4, 5) for layer in block]
    assert activations == [False, False, False, False, False, True]


def test_the_last_layer_reads_what_enters_the_head_and_what_its_layers_make_of_it(model):
    fused = torch.rand(2, convolutions(model.head)[0].in_channels, 8, 8)
    hidden = model.head.head_features(fused)
    assert torch.equal(hidden[:, : fused.shape[1]], fused)
    assert torch.equal(hidden[:, fused.shape[1] :], model.head[1](model.head[0](fused)))
    assert torch.equal(model.head(fused), model.head[2](hidden))


def test_head_is_called_once_for_all_tasks(model):
    calls = []
    for i, layer in enumerate(model.head):
        layer.register_forward_hook(lambda *_, i=i: calls.append(i))
    model(torch.rand(1, 3, 64, 64))
    assert calls == [0, 1, 2]


@pytest.mark.parametrize("task", [0, 1, 2])
def test_each_output_comes_from_its_own_channels_of_the_one_map(model, task):
    images = torch.rand(1, 3, 64, 64)
    before = model(images)
    first = (0, 5 + DET, 5 + DET + SEG)[task]
    last = (5 + DET, 5 + DET + SEG, 5 + DET + SEG + CLS)[task]
    with torch.no_grad():
        model.head[-1].bias[first:last] += 1.0
    changes = [not torch.equal(a, b) for a, b in zip(before, model(images), strict=True)]
    assert changes == [task == i for i in range(3)]
    assert torch.allclose(model(images)[task], before[task] + 1, atol=1e-4), (
        "every channel of the output is in the slice"
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_channels_of_a_task_are_those_of_its_output(model, dtype):
    content = torch.tensor([[0.0, 0, 96, 64], [8, 0, 52, 64]])
    features, deep = model.features(torch.rand(2, 3, 64, 96), content)
    hidden = model.head.head_features(features)
    grid = model.head_map(hidden, deep).to(dtype)
    channels = {task: task_channels(grid, model.head.split, task) for task in ("det", "seg", "cls")}
    assert torch.equal(channels["det"], grid[:, : 5 + DET].float())
    assert torch.equal(channels["seg"], grid[:, 5 + DET : 5 + DET + SEG].float())
    assert torch.equal(channels["cls"], grid[:, 5 + DET + SEG :].float())
    assert {part.dtype for part in channels.values()} == {torch.float32}
    if dtype == torch.float32:
        outputs = model.outputs(hidden, deep, content)
        assert torch.equal(outputs.detection, channels["det"])
        assert torch.equal(outputs.classification, mean_over_content(channels["cls"], content))


def test_the_class_channels_alone_read_the_deepest_features(model):
    """Linearly and cell by cell, so that masks and boxes do not depend on what classification learns there."""
    images = torch.rand(2, 3, 64, 96)
    features, deep = model.features(images, whole_input(images))
    hidden = model.head.head_features(features)
    added = model.head_map(hidden, deep) - model.head.last(hidden)  # (B, C, h, w)
    expected = F.interpolate(model.class_skip(CLASS_GAIN * deep), scale_factor=4, mode="bilinear")
    assert torch.equal(added[:, : 5 + DET + SEG], torch.zeros_like(added[:, : 5 + DET + SEG]))
    assert torch.allclose(added[:, 5 + DET + SEG :], expected, atol=1e-5) and expected.abs().max() > 0.01


def test_a_new_model_reads_no_class_from_the_deepest_features_yet():
    assert not UnifiedModel(DET, CLS).class_skip.weight.any()


def test_last_is_the_layer_that_state_dicts_call_head_2(model):
    assert model.head.last is model.head[2]
    assert set(model.head.state_dict()) > {"0.0.0.weight", "1.1.0.weight", "2.weight", "2.bias"}


# ---------------------------------------------------------------- shapes


@pytest.mark.parametrize(("height", "width"), [(32, 32), (96, 64), (64, 160)])
@pytest.mark.parametrize(("num_det", "num_cls"), [(1, 2), (10, 10), (3, 25)])
def test_shapes_of_the_outputs(height, width, num_det, num_cls):
    model = UnifiedModel(num_det, num_cls).eval()
    out = model(torch.rand(2, 3, height, width))
    assert out.detection.shape == (2, 5 + num_det, height // 8, width // 8)
    assert out.segmentation.shape == (2, 21, height // 8, width // 8)
    assert out.classification.shape == (2, num_cls)
    assert all(o.dtype == torch.float32 and o.isfinite().all() for o in out)


@pytest.mark.parametrize("size", [(64, 60), (33, 64)])
def test_sizes_that_are_no_multiple_of_32_are_refused(model, size):
    with pytest.raises(AssertionError, match="multiples of 32"):
        model(torch.rand(1, 3, *size))


def test_images_are_normalised_inside_the_model(model):
    """As EfficientNet-Lite0's were: pixels of 0 to 255, minus 127, divided by 128."""
    seen = []
    model.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    for pixel in (127, 255, 0):
        model(torch.full((1, 3, 32, 32), pixel / 255))
    assert [images.unique().tolist() for images in seen] == [
        [pytest.approx(0, abs=1e-6)],
        [pytest.approx(1)],
        [pytest.approx(-127 / 128)],
    ]
    assert (MEAN, STD, NORM_EPS) == (127 / 255, 128 / 255, 1e-3)


def test_outputs_are_float32_in_half_precision_too(model):
    """The losses are computed outside of autocast, from what comes out here."""
    images = torch.rand(2, 3, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        assert [output.dtype for output in model(images)] == [torch.float32] * 3


def test_gradients_in_bfloat16_are_those_of_float32():
    """oneDNN gives wrong gradients for a dilated depthwise convolution in bfloat16: no layer may be one."""
    model = UnifiedModel(DET, CLS)
    fold_batchnorm(model)
    images, gradients = torch.rand(8, 3, 256, 256).contiguous(memory_format=torch.channels_last), []
    for half in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            features, deep = model.features(images, whole_input(images))
            grid = model.head_map(model.head.head_features(features), deep)
        grid.float().square().mean().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, exact in gradients[0].items():
        assert (gradients[1][name] - exact).norm() < 0.2 * exact.norm() + 1e-6, name


def test_confidence_starts_at_the_prior():
    confidence = UnifiedModel(DET, CLS).eval()(torch.rand(2, 3, 96, 96)).detection[:, 4].sigmoid()
    assert confidence.min() > CONFIDENCE_PRIOR / 2 and confidence.max() < CONFIDENCE_PRIOR * 2


def test_a_placed_model_is_channels_last_and_predicts_the_same():
    model = UnifiedModel(DET, CLS).eval()
    images = torch.rand(1, 3, 64, 64)
    before = model(images)
    placed = place_model(model, "cpu")
    assert placed is model
    weight = placed.backbone.trunk.downsample[0][0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    assert same_outputs(before, placed(images))
    assert {p.device.type for p in place_model(model, "meta").parameters()} == {"meta"}


# ---------------------------------------------------------------- size


def test_parameters_are_within_the_budget(model):
    parameters = count_parameters(model)
    assert parameters < 8_000_000, "the assignment's rule"
    assert parameters < 5_000_000, "this model's own aim"


def test_parameters_are_counted_right():
    assert count_parameters(nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5))) == 3 * 5 * 9 + 5 + 5 + 5


@pytest.mark.parametrize("folded", [False, True])
def test_every_parameter_learns(model, folded):
    if folded:
        fold_batchnorm(model)
    model.train()
    sum(output.square().mean() for output in model(torch.rand(2, 3, 64, 64))).backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert idle == []


# ---------------------------------------------------------------- folding and loading


def test_folding_leaves_the_outputs_and_no_batchnorm(model):
    images = torch.rand(2, 3, 64, 96)
    before = model(images)
    assert norms(model) > 0
    fold_batchnorm(model)
    assert norms(model) == 0
    assert same_outputs(before, model(images))


def test_folding_twice_is_folding_once(model):
    fold_batchnorm(model)
    once = model(torch.ones(1, 3, 32, 32))
    fold_batchnorm(model)
    assert same_outputs(once, model(torch.ones(1, 3, 32, 32)), 0)


def test_folded_model_has_no_statistics_that_drift_in_training(model):
    fold_batchnorm(model)
    images = torch.rand(2, 3, 64, 64)
    before = model(images)
    model.train()
    model(images + 3)
    assert same_outputs(before, model.eval()(images), 0)


def test_folding_keeps_the_training_mode():
    model = UnifiedModel(DET, CLS).train()
    fold_batchnorm(model)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("folded", ["nothing", "trunk", "all"])
def test_load_weights_restores_what_was_saved(model, folded):
    if folded != "nothing":
        fold_batchnorm(model if folded == "all" else model.backbone.trunk)
    other = UnifiedModel(DET, CLS)
    load_weights(other, model.state_dict())
    images = torch.rand(1, 3, 64, 64)
    assert norms(other) == norms(model)
    assert same_outputs(model(images), other.eval()(images), 0)


def test_load_weights_of_another_model_is_refused():
    with pytest.raises(RuntimeError):
        load_weights(UnifiedModel(DET, CLS), UnifiedModel(DET + 1, CLS).state_dict())
    with pytest.raises(RuntimeError):
        load_weights(UnifiedModel(DET, CLS), {})


# ---------------------------------------------------------------- convolutions


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("kernel", [3, 5])
def test_at_stride_2_a_convolution_pads_one_pixel_less_before_the_image_than_behind_it(kernel, groups):
    """As TensorFlow's "same": of the 1 (3 x 3) or 3 pixels (5 x 5) in all, 0 or 1 come before."""
    conv = SameConv(4, 8, kernel, stride=2, groups=groups)
    before = {3: 0, 5: 1}[kernel]
    images = torch.randn(2, 4, 12, 18)
    padded = F.pad(images, (before, before + 1, before, before + 1))
    expected = F.conv2d(padded, conv.weight, stride=2, groups=groups)
    found = conv(images)
    assert found.shape == (2, 8, 6, 9)
    assert torch.allclose(found, expected, atol=1e-5)
    assert conv.bias is None


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_at_stride_1_a_convolution_pads_alike_on_all_sides(kernel):
    conv = SameConv(4, 8, kernel, stride=1, groups=1)
    images = torch.randn(2, 4, 12, 18)
    expected = F.conv2d(images, conv.weight, padding="same")
    assert torch.allclose(conv(images), expected, atol=1e-5)


def test_a_bottleneck_adds_its_input_only_where_both_have_one_shape():
    for stride, out, adds in ((1, 8, True), (1, 16, False), (2, 8, False)):
        block = Bottleneck(8, out, kernel=3, stride=stride, expand=6).eval()
        assert block.residual == adds
        nn.init.zeros_(block.layers[-1][0].weight)  # what the layers make is 0: only the input is left
        images = torch.randn(1, 8, 4, 4)
        expected = images if adds else torch.zeros(1, out, 4 // stride, 4 // stride)
        assert torch.equal(block(images), expected)


# ---------------------------------------------------------------- where in the input the picture is


def grid_of(content: list[float], input_size: tuple[int, int], map_size: tuple[int, int]) -> ContentGrid:
    """The grid of a batch of one."""
    return ContentGrid(torch.tensor([content], dtype=torch.float32), input_size, map_size)


def test_the_whole_input_has_no_padding():
    assert whole_input(torch.zeros(2, 3, 64, 96)).tolist() == [[0, 0, 96, 64]] * 2


@pytest.mark.parametrize("bins", PyramidPooling.BINS)
@pytest.mark.parametrize(("height", "width"), [(12, 6), (6, 18)])
def test_without_padding_pooling_is_adaptive_average_pooling(bins, height, width):
    images, maps = torch.zeros(2, 3, 32 * height, 32 * width), torch.randn(2, 5, height, width)
    grid = ContentGrid(whole_input(images), images.shape[-2:], maps.shape[-2:])
    assert torch.allclose(grid.pool(maps, bins), F.adaptive_avg_pool2d(maps, bins), atol=1e-5)


@pytest.mark.parametrize("bins", PyramidPooling.BINS)
@pytest.mark.parametrize(("height", "width"), [(12, 7), (3, 10), (2, 2)])
def test_without_padding_spreading_is_bilinear_interpolation(bins, height, width):
    images, pooled = torch.zeros(2, 3, 32 * height, 32 * width), torch.randn(2, 5, bins, bins)
    grid = ContentGrid(whole_input(images), images.shape[-2:], (height, width))
    expected = F.interpolate(pooled, size=(height, width), mode="bilinear", align_corners=False)
    assert torch.allclose(grid.spread(pooled), expected, atol=1e-5)


def test_pooling_by_hand():
    """Four columns of 8 pixels, of which the picture covers 12 to 32: a half of the second, and the last two."""
    values = torch.tensor([100.0, 1.0, 2.0, 4.0]).expand(1, 1, 4, 4)
    grid = grid_of([12, 0, 32, 32], (32, 32), (4, 4))
    assert grid.pool(values, 1).item() == pytest.approx((0.5 * 1 + 2 + 4) / 2.5)
    left = (0.5 * 1 + 0.75 * 2) / 1.25  # the first of two parts ends after three quarters of the third column
    right = (0.25 * 2 + 4) / 1.25
    assert grid.pool(values, 2)[0, 0].tolist() == [pytest.approx([left, right])] * 2


def test_columns_follow_x_and_rows_follow_y():
    """The picture is the upper half of the left three quarters."""
    values = torch.arange(16.0).reshape(1, 1, 2, 8)
    grid = grid_of([0, 0, 48, 8], (16, 64), (2, 8))
    assert grid.pool(values, 1).item() == pytest.approx(sum(range(6)) / 6)
    assert grid.pool(values, 2)[0, 0].tolist() == [pytest.approx([1, 4])] * 2


def test_spreading_by_hand():
    """Two parts whose centres are those of the second and the third of five cells: beyond them their value holds."""
    grid = grid_of([8, 0, 24, 40], (40, 40), (5, 5))
    found = grid.spread(torch.tensor([[10.0, 20.0], [10.0, 20.0]])[None, None])
    assert found[0, 0].tolist() == [pytest.approx([10, 10, 20, 20, 20])] * 5
    wider = grid_of([8, 0, 40, 40], (40, 40), (5, 5))  # the centres are two cells apart: 2 and 4
    found = wider.spread(torch.tensor([[10.0, 20.0], [10.0, 20.0]])[None, None])
    assert found[0, 0].tolist() == [pytest.approx([10, 10, 12.5, 17.5, 20])] * 5


def test_every_picture_of_a_batch_has_its_own_content():
    maps = torch.randn(3, 2, 6, 6)
    contents = torch.tensor([[0.0, 0, 48, 48], [0, 0, 48, 20], [13, 5, 30, 41]])
    together = ContentGrid(contents, (48, 48), (6, 6))
    for i in range(3):
        alone = ContentGrid(contents[i : i + 1], (48, 48), (6, 6))
        assert torch.allclose(together.pool(maps, 3)[i], alone.pool(maps[i : i + 1], 3)[0], atol=1e-6)
        pooled = torch.randn(3, 2, 3, 3)
        assert torch.allclose(together.spread(pooled)[i], alone.spread(pooled[i : i + 1])[0], atol=1e-6)


PLACES = [[0, 0, 96, 40], [0, 0, 56, 96], [16, 0, 80, 96], [20, 12, 70, 84]]  # of pictures in a square of 96 pixels


def beside(content: list[int], cells: int) -> torch.Tensor:
    """(cells, cells) bool: the cells of a square of 96 pixels that hold nothing of the picture."""
    left, top, right, bottom = content
    side = 96 // cells
    begins = side * torch.arange(cells)
    columns = (begins < right) & (begins + side > left)
    rows = (begins < bottom) & (begins + side > top)
    return ~(rows[:, None] & columns)


@pytest.mark.parametrize("content", PLACES)
@pytest.mark.parametrize("bins", PyramidPooling.BINS)
def test_what_lies_beside_the_picture_is_not_pooled(bins, content):
    maps, grid = torch.randn(1, 4, 12, 12), grid_of(content, (96, 96), (12, 12))
    before = grid.pool(maps, bins)
    changed = maps + 100 * beside(content, 12)
    assert torch.equal(grid.pool(changed, bins), before)
    inside = maps + 100 * ~beside(content, 12)
    assert torch.allclose(grid.pool(inside, bins), before + 100, atol=1e-3), "the weights of a part add up to 1"


@pytest.mark.parametrize("content", PLACES)
def test_padding_changes_nothing_of_what_pyramid_pooling_says_about_the_picture(content):
    pooling, maps = randomise_norms(PyramidPooling(6, 8)).eval(), torch.randn(1, 6, 12, 12)
    padding, grid = beside(content, 12), grid_of(content, (96, 96), (12, 12))
    before = pooling(maps, grid)
    after = pooling(torch.where(padding, torch.randn(1, 6, 12, 12), maps), grid)
    assert torch.equal(after[:, :, ~padding], before[:, :, ~padding])
    assert not torch.equal(after, before)


def test_the_mean_over_a_content_by_hand():
    """Of 4 x 5 cells of 8 pixels the picture covers two rows and a half, and all columns but the last."""
    maps = torch.rand(2, 3, 4, 5)
    contents = torch.tensor([[0.0, 0, 40, 32], [0, 0, 32, 20]])
    found = mean_over_content(maps, contents)
    assert torch.allclose(found[0], maps[0].mean((1, 2)))
    inside = maps[1, :, :, :4]
    rows = inside[:, 0] + inside[:, 1] + inside[:, 2] / 2
    assert torch.allclose(found[1], rows.sum(1) / (2.5 * 4))


@pytest.mark.parametrize("content", PLACES)
def test_the_class_of_a_letterboxed_picture_does_not_depend_on_the_cells_beside_it(model, content):
    contents = torch.tensor([content], dtype=torch.float32)
    features, deep = model.features(torch.rand(1, 3, 96, 96), contents)
    hidden = model.head.head_features(features)
    before = model.outputs(hidden, deep, contents)
    padding = beside(content, 12)
    after = model.outputs(torch.where(padding, hidden + 5, hidden), deep, contents)
    assert torch.equal(after.classification, before.classification)
    assert not torch.equal(after.detection, before.detection)
    inside = model.outputs(torch.where(padding, hidden, hidden + 5), deep, contents)
    assert not torch.allclose(inside.classification, before.classification, atol=1e-3)


def test_without_a_content_the_picture_is_everywhere(model):
    images = torch.rand(2, 3, 64, 96)
    assert same_outputs(model(images), model(images, whole_input(images)), 0)


def test_pyramid_pooling_and_the_class_know_where_the_picture_is(model):
    grids = []
    model.backbone.pooling.register_forward_pre_hook(lambda _, args: grids.append(args[1]))
    contents = torch.tensor([[0.0, 0, 96, 64], [16, 0, 64, 40]])
    images = torch.rand(2, 3, 64, 96)
    outputs = model(images, contents)
    (grid,) = grids
    assert (grid.rows, grid.columns) == (2, 3), "of the features at stride 32"
    assert [edge.flatten().tolist() for edge in (*grid.x, *grid.y)] == [[0, 0.5], [3, 2], [0, 0], [2, 1.25]]
    features, deep = model.features(images, contents)
    by_hand = model.head_map(model.head.head_features(features), deep)[:, 5 + DET + SEG :]
    assert torch.allclose(outputs.classification[0], by_hand[0].mean((1, 2)), atol=1e-5)
    assert torch.allclose(outputs.classification[1], by_hand[1, :, :5, 2:8].mean((1, 2)), atol=1e-5)


# ---------------------------------------------------------------- ImageNet weights


@pytest.fixture(scope="module")
def lite0() -> dict[str, torch.Tensor]:
    """The public weights of EfficientNet-Lite0, by the names of their own."""
    state = torch.load(files.START_WEIGHTS, weights_only=True)
    return {name: value.float() for name, value in state.items()}


class Lite0:
    """EfficientNet-Lite0 as its authors wrote it down, in eval mode, by its own names: an oracle for the trunk."""

    STRIDE_2 = (1, 3, 5, 11)  # blocks that halve the size

    def __init__(self, state: dict[str, torch.Tensor]):
        self.state = state

    def conv(self, x, name, stride=1, groups=1):
        """A convolution that pads as TensorFlow's "same" does where the stride divides the size."""
        weight = self.state[f"{name}.weight"]
        padding = weight.shape[-1] - stride  # before and behind together
        before = padding // 2
        behind = padding - before
        return F.conv2d(F.pad(x, (before, behind, before, behind)), weight, stride=stride, groups=groups)

    def norm(self, x, name):
        """BatchNorm by its formula."""
        scale = self.state[f"{name}.weight"] / (self.state[f"{name}.running_var"] + 0.001).sqrt()
        shift = self.state[f"{name}.bias"] - scale * self.state[f"{name}.running_mean"]
        return x * scale[:, None, None] + shift[:, None, None]

    def block(self, x, number):
        """Expand, filter each channel, project; the first block does not expand."""
        name, y = f"_blocks.{number}", x
        if number > 0:
            y = self.norm(self.conv(y, f"{name}._expand_conv"), f"{name}._bn0").clamp(0, 6)
        stride = 2 if number in self.STRIDE_2 else 1
        y = self.conv(y, f"{name}._depthwise_conv", stride, groups=y.shape[1])
        y = self.norm(y, f"{name}._bn1").clamp(0, 6)
        y = self.norm(self.conv(y, f"{name}._project_conv"), f"{name}._bn2")
        return x + y if x.shape == y.shape else y

    def outputs(self, x) -> list[torch.Tensor]:
        """The outputs of the first convolution, of the 16 blocks and of the last convolution."""
        result = [self.norm(self.conv(x, "_conv_stem", stride=2), "_bn0").clamp(0, 6)]
        for number in range(16):
            result.append(self.block(result[-1], number))
        result.append(self.norm(self.conv(result[-1], "_conv_head"), "_bn1").clamp(0, 6))
        return result


def blocks_of(trunk: Trunk) -> list[nn.Module]:
    return [*trunk.downsample, *trunk.global16, *trunk.global32]


@torch.no_grad()
def steps(blocks: list[nn.Module], x: torch.Tensor) -> list[torch.Tensor]:
    """The output of every block in turn."""
    result = []
    for block in blocks:
        x = block(x)
        result.append(x)
    return result


def test_the_trunk_is_the_table_of_efficientnet_lite0():
    blocks = blocks_of(Trunk().eval())
    result = [(y.shape[1], 64 // y.shape[2]) for y in steps(blocks, torch.rand(1, 3, 64, 64))]
    expected = [(32, 2), (16, 2)] + [(24, 4)] * 2 + [(40, 8)] * 2 + [(80, 16)] * 3 + [(112, 16)] * 3
    expected += [(192, 32)] * 4 + [(320, 32), (1280, 32)]
    assert result == expected, "channels and stride so far"
    depthwise = [max(convolutions(block), key=lambda conv: conv.groups) for block in blocks[1:-1]]
    assert [conv.kernel_size[0] for conv in depthwise] == [3, 3, 3, 5, 5, 3, 3, 3, 5, 5, 5, 5, 5, 5, 5, 3]
    widths = [convolutions(block)[0].in_channels for block in blocks[1:-1]]
    assert [conv.groups for conv in depthwise] == [32] + [6 * width for width in widths[1:]], "expansion 1, then 6"


@torch.no_grad()
def test_the_trunk_with_imagenet_weights_equals_efficientnet_lite0_block_by_block(lite0):
    trunk = Trunk().eval()
    load_imagenet(trunk, lite0)
    images = (torch.rand(2, 3, 96, 64) - 127 / 255) / (128 / 255)
    expected = Lite0(lite0).outputs(images)
    result = steps(blocks_of(trunk), images)
    assert (expected[0] == 6).any(), "bright enough that ReLU6 cuts"
    for number, (a, b) in enumerate(zip(expected, result, strict=True)):
        assert torch.allclose(a, b, atol=1e-3), f"block {number}"
        assert a.std() > 0.1
    for tap, number in zip(trunk(images), (5, 11, 17), strict=True):  # the last ones at strides 8, 16 and 32
        assert torch.allclose(tap, expected[number], atol=1e-3)
    assert norms(trunk) == 0


def test_half_precision_imagenet_weights_become_single(lite0):
    trunk = Trunk()
    load_imagenet(trunk, {name: value.half() for name, value in lite0.items()})
    assert all(p.dtype == torch.float32 for p in trunk.parameters())


def test_load_imagenet_pairs_every_tensor_once_and_leaves_the_classifier(lite0):
    more = {"_fc.weight": torch.rand(1000, 1280), "_fc.bias": torch.rand(1000)}
    more["_bn0.num_batches_tracked"] = torch.tensor(3)
    trunk = Trunk()
    own = {name for name in trunk.state_dict() if not name.endswith("num_batches_tracked")}
    pairs = load_imagenet(trunk, lite0 | more)
    assert [theirs for theirs, _ in pairs] == list(lite0)
    assert len(pairs) == len(own) and {ours for _, ours in pairs} == own


def test_wrong_imagenet_weights_are_refused(lite0):
    narrower = lite0 | {"_conv_head.weight": torch.rand(640, 320, 1, 1)}
    longer = lite0 | {"_conv_more.weight": torch.rand(4, 4, 1, 1)}
    shorter = {name: value for name, value in lite0.items() if not name.startswith("_bn1.")}
    for state in (narrower, longer, shorter, mobilenet_v2(weights=None).state_dict(), {}):
        with pytest.raises(ValueError, match="not those of EfficientNet-Lite0"):
            load_imagenet(Trunk(), state)
