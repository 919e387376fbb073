"""Fast-SCNN with one single-branch head: detection, segmentation and classification from one output map.

Backbone: R. Poudel, S. Liwicki, R. Cipolla, "Fast-SCNN: Fast Semantic Segmentation Network", BMVC 2019 (section 3).
Its bottlenecks are those of M. Sandler et al., "MobileNetV2", CVPR 2018. Their numbers and widths are those of
EfficientNet-Lite0 (Google 2020: EfficientNet-B0, M. Tan and Q. Le, ICML 2019, table 1, without squeeze-and-excitation
and with ReLU6), so that the public ImageNet weights of that network load into them.
Shapes below: B images of H x W pixels, h = H / 8, w = W / 8.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mtl_utils.detection import CONFIDENCE, FIRST_CLASS, STRIDE
from mtl_utils.tasks import CHANNEL_ORDER, VOC_CLASSES, Task

MEAN = 127 / 255  # of every colour channel in [0, 1]; the ImageNet weights were trained with this mean and deviation
STD = 128 / 255
NORM_EPS = 1e-3  # added to every variance by BatchNorm: EfficientNet's value
CONFIDENCE_PRIOR = 0.01  # confidence that every cell starts with (focal loss, Lin et al. 2017, section 4.1)
OUTPUT_STD = 0.01  # standard deviation of the last layer's first weights (focal loss, section 4.1)
MAX_STRIDE = 32  # input pixels to a cell of the deepest features, along each side


class Outputs(NamedTuple):
    """What one forward gives for a batch."""

    detection: Tensor  # (B, 5 + C_det, h, w): raw cx, cy, w, h, confidence logit and class logits of every cell
    segmentation: Tensor  # (B, 21, h, w): class logits of every cell
    classification: Tensor  # (B, C_cls): class logits of the image


class SameConv(nn.Conv2d):
    """Convolution that pads as TensorFlow's "same" does: at stride 2 one pixel less before the image than behind it.

    (B, inp, H, W) to (B, out, H / stride, W / stride). ImageNet's weights were trained with this padding.
    """

    def __init__(self, inp: int, out: int, kernel: int, stride: int, groups: int):
        padding = kernel // 2  # keeps the size at stride 1
        if stride == 2:
            padding += 1  # one more on all sides; forward drops what it adds before the image
        super().__init__(inp, out, kernel, stride, padding, groups=groups, bias=False)  # BatchNorm has the bias

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if self.stride == (1, 1):
            return y
        return y[:, :, 1:, 1:]


class ConvNorm(nn.Sequential):
    """Convolution, BatchNorm and, unless switched off, ReLU6; BatchNorm can be folded into the convolution.

    (B, inp, H, W) to (B, out, H / stride, W / stride).
    """

    def __init__(
        self,
        inp: int,
        out: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        activation: bool = True,
    ):
        conv = SameConv(inp, out, kernel, stride, groups)
        norm = nn.BatchNorm2d(out, eps=NORM_EPS)
        super().__init__(conv, norm, nn.ReLU6(inplace=True) if activation else nn.Identity())

    def fold(self) -> None:
        """Make convolution and BatchNorm one convolution that gives the same in eval mode."""
        conv, norm = self[0], self[1]
        if not isinstance(norm, nn.BatchNorm2d):
            return  # it is folded already
        assert isinstance(conv, nn.Conv2d)
        was_training = self.training
        self.eval()  # fusing is defined for the running statistics only
        self[0] = fuse_conv_bn_eval(conv, norm).requires_grad_()  # else the new bias would be frozen
        self[1] = nn.Identity()
        self.train(was_training)


class Bottleneck(nn.Module):
    """Inverted residual: expand by 1 x 1, filter each channel, project by a linear 1 x 1 (MobileNetV2, section 3.3)."""

    def __init__(self, inp: int, out: int, kernel: int, stride: int, expand: int):
        super().__init__()
        wide = inp * expand
        layers: list[nn.Module] = []
        if expand > 1:
            layers.append(ConvNorm(inp, wide, 1))
        layers.append(ConvNorm(wide, wide, kernel, stride, groups=wide))
        layers.append(ConvNorm(wide, out, 1, activation=False))
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and inp == out  # only then input and output can be added

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.residual else y


class Separable(nn.Sequential):
    """Depthwise then pointwise 1 x 1 convolution, no activation between (Fast-SCNN, 3.2.1: DSConv)."""

    def __init__(self, inp: int, out: int, kernel: int):
        depthwise = ConvNorm(inp, inp, kernel, groups=inp, activation=False)
        pointwise = ConvNorm(inp, out, 1)
        super().__init__(depthwise, pointwise)


class Row(NamedTuple):
    """Bottlenecks in a chain, alike but for the stride of the first: a row of the tables below."""

    expansion: int  # factor by which a bottleneck's middle is wider than its input
    channels: int  # of every bottleneck's output
    kernel: int  # side of the depthwise convolution
    blocks: int
    stride: int  # of the first bottleneck, the others have 1


# EfficientNet-Lite0, all of it, distributed over Fast-SCNN's modules
STEM_CHANNELS = 32  # of the first convolution, stride 2
DOWNSAMPLE = (  # from stride 2 to stride 8
    Row(1, 16, 3, 1, 1),
    Row(6, 24, 3, 2, 2),
    Row(6, 40, 5, 2, 2),
)
GLOBAL16 = (  # at stride 16
    Row(6, 80, 3, 3, 2),
    Row(6, 112, 5, 3, 1),
)
GLOBAL32 = (  # at stride 32
    Row(6, 192, 5, 4, 2),
    Row(6, 320, 3, 1, 1),
)
DEEP_CHANNELS = 1280  # of the 1 x 1 convolution behind the rows
# the layers that no ImageNet weights exist for
POOL_CHANNELS = 256  # of the pyramid pooling module
FUSE_CHANNELS = 256  # of feature fusion
SKIP_CHANNELS = 64  # of the trunk's deepest features that go past fusion; more than the head's 46 outputs can use
INPUT_CHANNELS = FUSE_CHANNELS + SKIP_CHANNELS  # of the head's input
HEAD_CHANNELS = 128  # of the head's two inner layers
HEAD_KERNEL = 5
CLASS_GAIN = 8.0  # factor of the features that class_skip reads: AdamW's equal steps then move its logits faster
MIX32 = (Row(2, POOL_CHANNELS, 5, 2, 1),)  # in feature fusion, at stride 32
MIX16 = (Row(1, FUSE_CHANNELS, 5, 2, 1),)  # and at stride 16


def build_rows(inp: int, rows: tuple[Row, ...]) -> tuple[nn.Sequential, int]:
    """The bottlenecks of some rows for `inp` channels, and the number of channels that leave them."""
    blocks: list[nn.Module] = []
    for row in rows:
        for number in range(row.blocks):
            stride = row.stride if number == 0 else 1
            blocks.append(Bottleneck(inp, row.channels, row.kernel, stride, row.expansion))
            inp = row.channels
    return nn.Sequential(*blocks), inp


# ---- where in a square input the picture is


def whole_input(images: Tensor) -> Tensor:
    """The content (B, 4) of images (B, 3, H, W) without padding: XYXY in input pixels, as all contents."""
    height, width = images.shape[-2:]
    corners = torch.tensor([0.0, 0.0, width, height], device=images.device)
    return corners.expand(images.shape[0], 4)


def axis_edges(content: Tensor, axis: int, input_size: int, cells: int) -> tuple[Tensor, Tensor]:
    """Where along an axis (0: x, 1: y) of a map of `cells` cells the pictures begin and end: (B, 1, 1) each."""
    cells_per_pixel = cells / input_size
    in_cells = content * cells_per_pixel  # (B, 4)
    start = in_cells[:, axis]
    end = in_cells[:, axis + 2]
    return start.view(-1, 1, 1), end.view(-1, 1, 1)


def averaging_matrix(start: Tensor, end: Tensor, cells: int, bins: int) -> Tensor:
    """(B, bins, cells): row k averages the cells in the k-th of `bins` equal parts of [start, end).

    A cell that lies in a part by half counts by half.
    """
    part = torch.arange(bins, device=start.device)
    part = part.view(1, -1, 1)
    cell = torch.arange(cells, device=start.device)  # where each cell begins
    cell_end = cell + 1
    length = (end - start) / bins  # (B, 1, 1), of a part
    part_start = start + part * length  # (B, bins, 1)
    part_end = part_start + length
    overlap_start = torch.maximum(part_start, cell)  # (B, bins, cells)
    overlap_end = torch.minimum(part_end, cell_end)
    overlap = overlap_end - overlap_start
    covered = overlap.clamp(min=0)  # 0 where cell and part lie apart
    return covered / length


def interpolation_matrix(start: Tensor, end: Tensor, cells: int, bins: int) -> Tensor:
    """(B, cells, bins): bilinear interpolation along one axis from `bins` equal parts of [start, end) to all cells."""
    cell = torch.arange(cells, device=start.device)
    centre = cell.view(1, -1, 1) + 0.5  # (1, cells, 1)
    share = (centre - start) / (end - start)  # (B, cells, 1): of the way from start to end
    return tent_weights(share * bins, bins)


def tent_weights(position: Tensor, count: int) -> Tensor:
    """Bilinear interpolation: weights (..., count) of `count` equal parts for positions (..., 1), 0 to `count`.

    A part's own centre, at its number plus a half, gets the weight 1; beyond the centres of the outer parts their
    values hold.
    """
    part = torch.arange(count, device=position.device)
    place = position - 0.5  # in steps between the parts' centres
    place = place.clamp(0, count - 1)
    distance = (place - part).abs()  # (..., count)
    weight = 1 - distance
    return weight.clamp(min=0)  # only the two nearest parts count


class ContentGrid:
    """Pools maps over the pictures in a batch of inputs, and spreads pooled values over whole maps again.

    Without it the grey padding of a letterboxed picture would count as a part of the picture.
    """

    def __init__(self, content: Tensor, input_size: Sequence[int], map_size: Sequence[int]):
        """content: (B, 4) XYXY in input pixels; input_size and map_size: height and width."""
        height, width = input_size
        self.rows, self.columns = map_size
        self.y = axis_edges(content, 1, height, self.rows)  # (B, 1, 1) each, in cells
        self.x = axis_edges(content, 0, width, self.columns)

    def pool(self, x: Tensor, bins: int) -> Tensor:
        """Averages (B, C, bins, bins) of maps (B, C, h, w) over bins x bins equal parts of each picture."""
        over_rows = averaging_matrix(*self.y, self.rows, bins)  # (B, bins, h)
        over_columns = averaging_matrix(*self.x, self.columns, bins)  # (B, bins, w)
        over_cells = outer_product(over_rows, over_columns)  # (B, bins * bins, h * w)
        cells = x.flatten(2).mT  # (B, h * w, C)
        pooled = over_cells.to(x.dtype) @ cells  # (B, bins * bins, C)
        return pooled.mT.reshape(x.shape[0], -1, bins, bins)

    def spread(self, pooled: Tensor) -> Tensor:
        """The inverse: (B, C, bins, bins) interpolated bilinearly to (B, C, h, w)."""
        bins = pooled.shape[-1]
        to_rows = interpolation_matrix(*self.y, self.rows, bins)  # (B, h, bins)
        to_columns = interpolation_matrix(*self.x, self.columns, bins)  # (B, w, bins)
        to_cells = outer_product(to_rows, to_columns)  # (B, h * w, bins * bins)
        parts = pooled.flatten(2).mT  # (B, bins * bins, C)
        spread = to_cells.to(pooled.dtype) @ parts  # (B, h * w, C)
        return spread.mT.reshape(pooled.shape[0], -1, self.rows, self.columns)


def outer_product(rows: Tensor, columns: Tensor) -> Tensor:
    """Matrices for two axes, (B, n, h) and (B, m, w), as one for maps that are flattened row by row: (B, n m, h w)."""
    product = torch.einsum("bnh,bmw->bnmhw", rows, columns)
    return product.flatten(3).flatten(1, 2)


# ---- the network


class PyramidPooling(nn.Module):
    """Context of the whole image at four scales (PSPNet, Zhao et al. 2017, 3.2): (B, inp, ...) to (B, out, ...)."""

    BINS = (1, 2, 3, 6)

    def __init__(self, inp: int, out: int):
        super().__init__()
        width = out // (2 * len(self.BINS))  # half the paper's: from 1,280 channels the branches are most of the module
        self.branches = nn.ModuleList(ConvNorm(inp, width, 1) for _ in self.BINS)
        context = width * len(self.BINS)
        self.project = ConvNorm(inp + context, out, 1)

    def forward(self, x: Tensor, grid: ContentGrid) -> Tensor:
        context = [x]
        for bins, branch in zip(self.BINS, self.branches, strict=True):
            pooled = branch(grid.pool(x, bins))  # (B, out / 8, bins, bins)
            context.append(grid.spread(pooled))
        y: Tensor = self.project(torch.cat(context, dim=1))
        return y


class FeatureFusion(nn.Module):
    """Sum of detailed and upsampled deep features at stride 8 (Fast-SCNN, section 3.2.3, table 3).

    Beyond the paper, the sum goes from stride 32 by way of stride 16 (as in feature pyramids, Lin et al., CVPR 2017),
    and 5 x 5 bottlenecks mix distant cells at both: the trunk is frozen, so only these layers can learn how far an
    object reaches.
    """

    def __init__(self, low: int, middle: int, deep: int, out: int):
        super().__init__()
        self.mix32, _ = build_rows(deep, MIX32)
        self.deep = ConvNorm(deep, out, 1, activation=False)
        self.middle = ConvNorm(middle, out, 1, activation=False)
        self.mix16, _ = build_rows(out, MIX16)
        self.low = ConvNorm(low, out, 1, activation=False)

    def forward(self, low: Tensor, middle: Tensor, deep: Tensor) -> Tensor:
        at32 = self.deep(self.mix32(deep))  # (B, out, h / 4, w / 4)
        at16 = self.middle(middle)  # (B, out, h / 2, w / 2)
        at16 = at16 + resize(at32, at16.shape[-2:])
        at16 = self.mix16(F.relu(at16))
        at8 = self.low(low)  # (B, out, h, w)
        at8 = at8 + resize(at16, at8.shape[-2:])
        return F.relu(at8)


class Trunk(nn.Module):
    """The layers that ImageNet weights exist for: learning to downsample, and the global extractor's bottlenecks.

    (B, 3, H, W) to features at strides 8, 16 and 32.
    """

    def __init__(self) -> None:
        super().__init__()
        blocks, self.low_channels = build_rows(STEM_CHANNELS, DOWNSAMPLE)
        self.downsample = nn.Sequential(ConvNorm(3, STEM_CHANNELS, 3, stride=2), *blocks)
        self.global16, self.middle_channels = build_rows(self.low_channels, GLOBAL16)
        self.global32, before_last = build_rows(self.middle_channels, GLOBAL32)
        self.global32.append(ConvNorm(before_last, DEEP_CHANNELS, 1))
        self.deep_channels = DEEP_CHANNELS

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        low = self.downsample(x)  # stride 8
        middle = self.global16(low)  # stride 16
        deep = self.global32(middle)  # stride 32
        return low, middle, deep


class FastSCNN(nn.Module):
    """(B, 3, H, W) normalised images with contents (B, 4) to features for the head and the trunk's deepest features.

    (B, INPUT_CHANNELS, h, w), of which the last SKIP_CHANNELS are linear in the deepest features: a skip connection
    past pooling and fusion; and (B, DEEP_CHANNELS, h / 4, w / 4).
    """

    def __init__(self) -> None:
        super().__init__()
        self.trunk = Trunk()
        low = self.trunk.low_channels
        middle = self.trunk.middle_channels
        deep = self.trunk.deep_channels
        self.pooling = PyramidPooling(deep, POOL_CHANNELS)
        self.fusion = FeatureFusion(low, middle, POOL_CHANNELS, FUSE_CHANNELS)
        self.skip = ConvNorm(deep, SKIP_CHANNELS, 1, activation=False)

    def forward(self, x: Tensor, content: Tensor) -> tuple[Tensor, Tensor]:
        low, middle, deep = self.trunk(x)
        input_size = x.shape[-2:]
        map_size = deep.shape[-2:]
        grid = ContentGrid(content, input_size, map_size)
        context = self.pooling(deep, grid)
        fused = self.fusion(low, middle, context)  # (B, FUSE_CHANNELS, h, w)
        skipped = self.skip(deep)
        skipped = resize(skipped, fused.shape[-2:])  # (B, SKIP_CHANNELS, h, w)
        return torch.cat([fused, skipped], dim=1), deep


ChannelSplit = tuple[int, int, int]  # channels of each task in a map, in CHANNEL_ORDER


class UnifiedHead(nn.Sequential):
    """Three layers in one branch, two of them depthwise-separable; the last one's channels are all the tasks get.

    A skip connection joins the head's own input to the last layer's (as in DenseNet, Huang et al. 2017): features of
    whole images then bypass the few channels that learn masks and boxes.
    """

    def __init__(self, inp: int, width: int, num_det: int, num_seg: int, num_cls: int):
        split = (FIRST_CLASS + num_det, num_seg, num_cls)
        channels = sum(split)
        last = nn.Conv2d(inp + width, channels, 1)
        first = Separable(inp, width, HEAD_KERNEL)
        second = Separable(width, width, HEAD_KERNEL)
        super().__init__(first, second, last)
        self.split: ChannelSplit = split
        assert last.bias is not None
        nn.init.normal_(last.weight, std=OUTPUT_STD)
        nn.init.zeros_(last.bias)
        prior_logit = torch.logit(torch.tensor(CONFIDENCE_PRIOR))
        nn.init.constant_(last.bias[CONFIDENCE], prior_logit.item())

    @property
    def last(self) -> nn.Conv2d:
        """The last layer: head features (B, inp + width, h, w) to the map (B, 5 + C_det + 21 + C_cls, h, w)."""
        layer = self[2]
        assert isinstance(layer, nn.Conv2d)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        grid: Tensor = self.last(self.head_features(x))
        return grid

    def head_features(self, x: Tensor) -> Tensor:
        """The last layer's input, (B, inp + width, h, w), from the head's, (B, inp, h, w)."""
        inner = self[1](self[0](x))  # (B, width, h, w)
        return torch.cat([x, inner], dim=1)

    @torch.no_grad()
    def copy_segmentation_classes(self, shared: dict[int, int]) -> None:
        """Let detection's class channels start as copies of segmentation's: {detection class: segmentation class}."""
        last, first_seg = self.last, self.split[0]
        assert last.bias is not None
        for det_class, seg_class in shared.items():
            target = FIRST_CLASS + det_class
            source = first_seg + seg_class
            last.weight[target] = last.weight[source]
            last.bias[target] = last.bias[source]


class UnifiedModel(nn.Module):
    """The whole network: (B, 3, H, W) float32 images in [0, 1], H and W multiples of 32, to Outputs.

    content: (B, 4) XYXY in input pixels, where in each input the picture is, the rest being padding; None: everywhere.
    """

    def __init__(self, num_det: int, num_cls: int):
        super().__init__()
        self.has_imagenet_trunk = False  # whether the trunk holds ImageNet weights; it then learns more slowly
        self.backbone = FastSCNN()
        self.head = UnifiedHead(INPUT_CHANNELS, HEAD_CHANNELS, num_det, len(VOC_CLASSES), num_cls)
        # the class channels read the trunk's deepest features as well; it starts at 0, without random numbers
        self.class_skip = nn.Conv2d(DEEP_CHANNELS, num_cls, 1, bias=False)
        nn.init.zeros_(self.class_skip.weight)

    def forward(self, images: Tensor, content: Tensor | None = None) -> Outputs:
        if content is None:
            content = whole_input(images)
        features, deep = self.features(images, content)
        hidden = self.head.head_features(features)
        return self.outputs(hidden, deep, content)

    def features(self, images: Tensor, content: Tensor) -> tuple[Tensor, Tensor]:
        """What head and class_skip read: (B, INPUT_CHANNELS, h, w) and (B, DEEP_CHANNELS, h / 4, w / 4)."""
        height, width = images.shape[-2:]
        for side in (height, width):
            assert side % MAX_STRIDE == 0, "height and width must be multiples of 32"
        normalised = (images - MEAN) / STD
        features, deep = self.backbone(normalised, content)
        return features, deep

    def head_features(self, images: Tensor, content: Tensor) -> Tensor:
        """The input of the head's last layer, (B, INPUT_CHANNELS + HEAD_CHANNELS, h, w)."""
        features, _ = self.features(images, content)
        return self.head.head_features(features)

    def head_map(self, hidden: Tensor, deep: Tensor) -> Tensor:
        """The output map, (B, 5 + C_det + 21 + C_cls, h, w) float32, of what head.last and class_skip read.

        The class channels are the sum of two linear readings: of the head's features, which learn masks and boxes, and
        of the frozen trunk's, which tell ImageNet's classes apart and are the same in every stage.
        """
        grid = self.head.last(hidden).float()  # losses need float32 under autocast too
        of_trunk = self.class_skip(CLASS_GAIN * deep)  # (B, C_cls, h / 4, w / 4)
        size = grid.shape[-2:]
        of_trunk = resize(of_trunk.float(), size)  # (B, C_cls, h, w)
        parts = list(self.head.split)
        det, seg, cls = torch.split(grid, parts, dim=1)
        cls = cls + of_trunk
        return torch.cat([det, seg, cls], dim=1)

    def outputs(self, hidden: Tensor, deep: Tensor, content: Tensor) -> Outputs:
        """Outputs from the input of the head's last layer and the deepest features, as `features` gives them."""
        grid = self.head_map(hidden, deep)
        channels = split_channels(grid, self.head.split)
        classification = mean_over_content(channels["cls"], content)
        return Outputs(channels["det"], channels["seg"], classification)


def split_channels(grid: Tensor, split: ChannelSplit) -> dict[Task, Tensor]:
    """The channels (B, C_task, h, w) of each task of a map (B, C, h, w)."""
    slices = torch.split(grid, list(split), dim=1)
    return dict(zip(CHANNEL_ORDER, slices, strict=True))


def task_channels(grid: Tensor, split: ChannelSplit, task: Task) -> Tensor:
    """The channels (B, C_task, h, w) of one task of a map (B, C, h, w), in float32."""
    return split_channels(grid.float(), split)[task]


def mean_over_content(x: Tensor, content: Tensor) -> Tensor:
    """Average over the pictures' cells, (B, C, h, w) with contents (B, 4) to (B, C).

    Cell logits become image logits, cell features image features.
    """
    height, width = x.shape[-2:]
    input_size = (STRIDE * height, STRIDE * width)
    grid = ContentGrid(content, input_size, (height, width))
    # autocast would multiply in half precision and leave a logit three digits
    with torch.autocast(x.device.type, enabled=False):
        mean = grid.pool(x.float(), 1)  # (B, C, 1, 1)
    return mean.flatten(1)


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear interpolation of (B, C, h, w) to (B, C, *size)."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def fold_batchnorm(module: nn.Module) -> None:
    """Fold every BatchNorm below `module` into its convolution: from here on no statistics exist that could drift."""
    for block in module.modules():
        if isinstance(block, ConvNorm):
            block.fold()


def place_model(model: UnifiedModel, device: str | torch.device) -> UnifiedModel:
    """Move a model to a device, its weights in channels-last order, for which convolutions are faster."""
    return model.to(device).to(memory_format=torch.channels_last)


def count_parameters(module: nn.Module) -> int:
    """Number of parameters, frozen ones included."""
    return sum(parameter.numel() for parameter in module.parameters())
