import pytest
import torch
from torch import nn
from torchvision.models import mobilenet_v2

from mtl_utils.model import (
    CONFIDENCE_PRIOR,
    WIDTHS,
    FastSCNN,
    UnifiedModel,
    count_parameters,
    fold_batchnorm,
    mean_over_cells,
    place_model,
    task_channels,
)
from mtl_utils.weights import load_imagenet, load_weights

DET, SEG, CLS = 10, 21, 10


@pytest.fixture(params=WIDTHS)
def model(request):
    torch.manual_seed(0)
    return randomise_norms(UnifiedModel(request.param, DET, CLS)).eval()


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


def test_head_has_three_convolutions_in_one_branch(model):
    convolutions = [layer for layer in model.head.modules() if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) == 3
    assert isinstance(model.head, nn.Sequential) and len(model.head) == 3
    first, second, last = convolutions
    assert first.out_channels == second.in_channels, "a chain"
    assert last.in_channels == first.in_channels + second.out_channels, "and past it what enters the head"
    assert convolutions[-1].out_channels == 5 + DET + SEG + CLS


def test_the_last_layer_reads_what_enters_the_head_and_what_its_convolutions_make_of_it(model):
    fused = torch.rand(2, model.head[0][0].in_channels, 8, 8)
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
    hidden = model.head_features(torch.rand(2, 3, 64, 96))
    grid = model.head.last(hidden).to(dtype)
    channels = {task: task_channels(grid, model.head.split, task) for task in ("det", "seg", "cls")}
    assert torch.equal(channels["det"], grid[:, : 5 + DET].float())
    assert torch.equal(channels["seg"], grid[:, 5 + DET : 5 + DET + SEG].float())
    assert torch.equal(channels["cls"], grid[:, 5 + DET + SEG :].float())
    assert {part.dtype for part in channels.values()} == {torch.float32}
    if dtype == torch.float32:
        outputs = model.outputs(hidden)
        assert torch.equal(outputs.detection, channels["det"])
        assert torch.equal(outputs.classification, mean_over_cells(channels["cls"]))


def test_mean_over_cells_is_the_mean_of_each_channel():
    grid = torch.rand(2, 3, 4, 5)
    expected = [[sum(channel.flatten().tolist()) / 20 for channel in image] for image in grid]
    assert torch.allclose(mean_over_cells(grid), torch.tensor(expected))


def test_last_is_the_layer_that_state_dicts_call_head_2(model):
    assert model.head.last is model.head[2]
    assert set(model.head.state_dict()) > {"0.0.weight", "1.0.weight", "2.weight", "2.bias"}


# ---------------------------------------------------------------- shapes


@pytest.mark.parametrize(("height", "width"), [(32, 32), (96, 64), (64, 160)])
@pytest.mark.parametrize(("num_det", "num_cls"), [(1, 2), (10, 10), (3, 25)])
def test_shapes_of_the_outputs(height, width, num_det, num_cls):
    model = UnifiedModel("paper", num_det, num_cls).eval()
    out = model(torch.rand(2, 3, height, width))
    assert out.detection.shape == (2, 5 + num_det, height // 8, width // 8)
    assert out.segmentation.shape == (2, 21, height, width)
    assert out.classification.shape == (2, num_cls)
    assert all(o.dtype == torch.float32 and o.isfinite().all() for o in out)


@pytest.mark.parametrize("size", [(64, 60), (33, 64)])
def test_sizes_that_are_no_multiple_of_32_are_refused(model, size):
    with pytest.raises(AssertionError, match="multiples of 32"):
        model(torch.rand(1, 3, *size))


def test_images_are_normalised_inside_the_model(model):
    seen = []
    model.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1).expand(1, 3, 32, 32))
    assert seen[0].abs().max() < 1e-6, "ImageNet's mean colour becomes 0"
    model(torch.tensor([0.485 + 0.229, 0.456 + 0.224, 0.406 + 0.225]).view(1, 3, 1, 1).expand(1, 3, 32, 32))
    assert (seen[1] - 1).abs().max() < 1e-5, "one standard deviation above becomes 1"


def test_gradients_in_bfloat16_are_those_of_float32():
    """oneDNN gives wrong gradients for a dilated depthwise convolution in bfloat16: no layer may run into that."""
    model = UnifiedModel("mobilenetv2", DET, CLS)
    fold_batchnorm(model)
    images, gradients = torch.rand(8, 3, 256, 256).contiguous(memory_format=torch.channels_last), []
    for half in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            grid = model.head(model.features(images))
        grid.float().square().mean().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, exact in gradients[0].items():
        assert (gradients[1][name] - exact).norm() < 0.2 * exact.norm() + 1e-6, name


def test_confidence_starts_at_the_prior():
    for widths in WIDTHS:
        confidence = UnifiedModel(widths, DET, CLS).eval()(torch.rand(2, 3, 96, 96)).detection[:, 4].sigmoid()
        assert confidence.min() > CONFIDENCE_PRIOR / 2 and confidence.max() < CONFIDENCE_PRIOR * 2


def test_a_placed_model_is_channels_last_and_predicts_the_same():
    model = UnifiedModel("paper", DET, CLS).eval()
    images = torch.rand(1, 3, 64, 64)
    before = model(images)
    placed = place_model(model, "cpu")
    assert placed is model
    weight = placed.backbone.trunk.downsample[0][0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    assert placed.mean.device == torch.device("cpu")
    assert same_outputs(before, placed(images))
    assert {p.device.type for p in place_model(model, "meta").parameters()} == {"meta"}


# ---------------------------------------------------------------- size and widths


def test_parameters_are_within_the_budget(model):
    parameters = count_parameters(model)
    assert parameters < 8_000_000, "the assignment's rule"
    assert parameters < 4_000_000, "this model's own aim"


def test_parameters_are_counted_right():
    assert count_parameters(nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5))) == 3 * 5 * 9 + 5 + 5 + 5


def blocks_of(trunk) -> list[nn.Module]:
    return [*trunk.downsample, *trunk.global16, *trunk.global32]


@torch.no_grad()
def steps(blocks: list[nn.Module], x: torch.Tensor) -> list[torch.Tensor]:
    """The output of every block in turn."""
    return [x := block(x) for block in blocks]


def test_paper_widths_are_table_1_of_fast_scnn():
    backbone = FastSCNN(WIDTHS["paper"]).eval()
    result = [(y.shape[1], 128 // y.shape[2]) for y in steps(blocks_of(backbone.trunk), torch.rand(1, 3, 128, 256))]
    expected = [(32, 2), (48, 4), (64, 8)]  # Conv2D, DSConv, DSConv: channels and stride so far
    expected += [(64, 16)] * 3 + [(96, 32)] * 3 + [(128, 32)] * 3  # bottlenecks, t = 6, n = 3
    assert result == expected
    for block in [*backbone.trunk.global16, *backbone.trunk.global32]:
        expand = block.layers[0][0]
        assert expand.out_channels == 6 * expand.in_channels
    features = backbone(torch.rand(1, 3, 128, 256))
    assert features.shape == (1, 128, 16, 32), "feature fusion: 128 channels at stride 8"
    assert backbone.pooling(torch.rand(1, 128, 4, 8)).shape == (1, 128, 4, 8), "pyramid pooling: 128 channels"


def test_mobilenet_widths_are_table_2_of_mobilenetv2():
    trunk = FastSCNN(WIDTHS["mobilenetv2"]).trunk.eval()
    result = [(y.shape[1], 64 // y.shape[2]) for y in steps(blocks_of(trunk), torch.rand(1, 3, 64, 64))]
    expected = [(32, 2), (16, 2)] + [(24, 4)] * 2 + [(32, 8)] * 3 + [(64, 16)] * 4 + [(96, 16)] * 3
    expected += [(160, 32)] * 3 + [(320, 32), (1280, 32)]
    assert result == expected


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
    model = UnifiedModel("paper", DET, CLS).train()
    fold_batchnorm(model)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("folded", ["nothing", "trunk", "all"])
def test_load_weights_restores_what_was_saved(model, folded):
    if folded != "nothing":
        fold_batchnorm(model if folded == "all" else model.backbone.trunk)
    other = UnifiedModel(model.widths, DET, CLS)
    load_weights(other, model.state_dict())
    images = torch.rand(1, 3, 64, 64)
    assert norms(other) == norms(model)
    assert same_outputs(model(images), other.eval()(images), 0)


def test_load_weights_of_another_model_is_refused():
    with pytest.raises(RuntimeError):
        load_weights(UnifiedModel("paper", DET, CLS), UnifiedModel("paper", DET + 1, CLS).state_dict())
    with pytest.raises(RuntimeError):
        load_weights(UnifiedModel("paper", DET, CLS), UnifiedModel("mobilenetv2", DET, CLS).state_dict())


# ---------------------------------------------------------------- ImageNet weights


@torch.no_grad()
def test_trunk_with_imagenet_weights_equals_torchvision_layer_by_layer():
    torch.manual_seed(1)
    theirs = randomise_norms(mobilenet_v2(weights=None)).eval()
    trunk = FastSCNN(WIDTHS["mobilenetv2"]).trunk.eval()
    load_imagenet(trunk, theirs.state_dict())
    images = 10 * torch.randn(2, 3, 96, 64)
    expected = steps(list(theirs.features), images)
    result = steps(blocks_of(trunk), images)
    assert (expected[0] == 6).any(), "bright enough that ReLU6 cuts"
    for number, (a, b) in enumerate(zip(expected, result, strict=True)):
        assert torch.allclose(a, b, atol=1e-3 * a.abs().max()), f"layer {number}"
    for tap, layer in zip(trunk(images), (6, 13, 18), strict=True):  # the last ones at strides 8, 16 and 32
        assert torch.allclose(tap, expected[layer], atol=1e-3 * tap.abs().max())
    assert norms(trunk) == 0


def test_half_precision_imagenet_weights_become_single():
    trunk = FastSCNN(WIDTHS["mobilenetv2"]).trunk
    state = {name: value.half() for name, value in mobilenet_v2(weights=None).state_dict().items()}
    load_imagenet(trunk, state)
    assert all(p.dtype == torch.float32 for p in trunk.parameters())


def test_load_imagenet_pairs_every_tensor_once():
    state = mobilenet_v2(weights=None).state_dict()
    pairs = load_imagenet(FastSCNN(WIDTHS["mobilenetv2"]).trunk, state)
    needed = {k for k in state if k.startswith("features.") and not k.endswith("num_batches_tracked")}
    assert {name for name, _ in pairs} == needed
    assert len({mine for _, mine in pairs}) == len(pairs)


def test_wrong_imagenet_weights_are_refused():
    with pytest.raises(ValueError, match="mobilenet_v2"):
        load_imagenet(FastSCNN(WIDTHS["mobilenetv2"]).trunk, mobilenet_v2(weights=None, width_mult=0.5).state_dict())
    with pytest.raises(ValueError, match="widths"):
        load_imagenet(FastSCNN(WIDTHS["paper"]).trunk, mobilenet_v2(weights=None).state_dict())
    with pytest.raises(ValueError):
        load_imagenet(FastSCNN(WIDTHS["mobilenetv2"]).trunk, {})
