"""Fast-SCNN with one single-branch head: detection, segmentation and classification from one output map.

Backbone: R. Poudel, S. Liwicki, R. Cipolla, "Fast-SCNN: Fast Semantic Segmentation Network", BMVC 2019 (section 3).
Its bottlenecks are those of M. Sandler et al., "MobileNetV2", CVPR 2018; with MobileNetV2's own widths the public
ImageNet weights of that network load into them. The activation is MobileNetV2's ReLU6, where Fast-SCNN has
ReLU; only the sum of feature fusion keeps ReLU. Shapes below: B images of H x W pixels, h = H / 8, w = W / 8.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mtl_utils.detection import CONFIDENCE, FIRST_CLASS, STRIDE
from mtl_utils.tasks import CHANNEL_ORDER, VOC_CLASSES, Task

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of RGB in [0, 1]
IMAGENET_STD = (0.229, 0.224, 0.225)
LAST = "head.2."  # what the names of the head's last layer begin with in a model's state dict
CONFIDENCE_PRIOR = 0.01  # confidence that every cell starts with (focal loss, Lin et al. 2017, section 4.1)
OUTPUT_STD = 0.01  # standard deviation of the last layer's first weights (focal loss, section 4.1)
MAX_STRIDE = 32  # input pixels to a cell of the deepest features, along each side


class Outputs(NamedTuple):
    """What one forward gives for a batch."""

    detection: Tensor  # (B, 5 + C_det, h, w): raw cx, cy, w, h, confidence logit and class logits of every cell
    segmentation: Tensor  # (B, 21, H, W): class logits of every input pixel; in training mode half of each side
    classification: Tensor  # (B, C_cls): class logits of the image


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
        dilation: int = 1,
        activation: bool = True,
    ):
        padding = kernel // 2 * dilation  # keeps the size at stride 1
        conv = nn.Conv2d(inp, out, kernel, stride, padding, dilation, groups, bias=False)  # BatchNorm has the bias
        norm = nn.BatchNorm2d(out)
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
    """Inverted residual: expand by 1 x 1, filter channels by 3 x 3, project by a linear 1 x 1 (MobileNetV2, 3.3)."""

    def __init__(self, inp: int, out: int, stride: int, expand: int):
        super().__init__()
        wide = inp * expand
        layers: list[nn.Module] = []
        if expand > 1:
            layers.append(ConvNorm(inp, wide, 1))
        layers.append(ConvNorm(wide, wide, 3, stride, groups=wide))
        layers.append(ConvNorm(wide, out, 1, activation=False))
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and inp == out  # only then input and output can be added

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.residual else y


class Separable(nn.Sequential):
    """Depthwise 3 x 3 then pointwise 1 x 1 convolution, no activation between (Fast-SCNN, 3.2.1: DSConv)."""

    def __init__(self, inp: int, out: int, stride: int):
        depthwise = ConvNorm(inp, inp, 3, stride, groups=inp, activation=False)
        pointwise = ConvNorm(inp, out, 1)
        super().__init__(depthwise, pointwise)


class Row(NamedTuple):
    """A row of a network's table: blocks in a chain, alike but for the stride of the first."""

    expansion: int  # factor by which a bottleneck's middle is wider than its input; 0 means a separable convolution
    channels: int  # of every block's output
    blocks: int
    stride: int  # of the first block, the others have 1


@dataclass(frozen=True)
class Widths:
    """Channel widths of Fast-SCNN's modules."""

    stem: int  # channels of the first convolution, stride 2
    downsample: tuple[Row, ...]  # from stride 2 to stride 8
    global16: tuple[Row, ...]  # at stride 16
    global32: tuple[Row, ...]  # at stride 32
    last: int | None  # channels of a 1 x 1 convolution behind the rows, None for none
    pool: int  # channels of the pyramid pooling module
    fuse: int  # channels of feature fusion, the head's input
    head: int  # channels of the head's two inner convolutions
    fuse_middle: bool  # whether stride 16 takes part in feature fusion


WIDTHS = {
    # table 1 of the Fast-SCNN paper
    "paper": Widths(
        stem=32,
        downsample=(Row(0, 48, 1, 2), Row(0, 64, 1, 2)),
        global16=(Row(6, 64, 3, 2),),
        global32=(Row(6, 96, 3, 2), Row(6, 128, 3, 1)),
        last=None,
        pool=128,
        fuse=128,
        head=128,
        fuse_middle=False,
    ),
    # table 2 of the MobileNetV2 paper, all of it, distributed over Fast-SCNN's modules
    "mobilenetv2": Widths(
        stem=32,
        downsample=(Row(1, 16, 1, 1), Row(6, 24, 2, 2), Row(6, 32, 3, 2)),
        global16=(Row(6, 64, 4, 2), Row(6, 96, 3, 1)),
        global32=(Row(6, 160, 3, 2), Row(6, 320, 1, 1)),
        last=1280,
        pool=256,
        fuse=256,
        head=128,
        fuse_middle=True,
    ),
}


def build_rows(inp: int, rows: tuple[Row, ...]) -> tuple[nn.Sequential, int]:
    """The blocks of some rows for `inp` channels, and the number of channels that leave them."""
    blocks: list[nn.Module] = []
    for row in rows:
        for number in range(row.blocks):
            stride = row.stride if number == 0 else 1
            if row.expansion:
                blocks.append(Bottleneck(inp, row.channels, stride, row.expansion))
            else:
                blocks.append(Separable(inp, row.channels, stride))
            inp = row.channels
    return nn.Sequential(*blocks), inp


class PyramidPooling(nn.Module):
    """Context of the whole image at four scales (PSPNet, Zhao et al. 2017, 3.2): (B, inp, ...) to (B, out, ...)."""

    BINS = (1, 2, 3, 6)

    def __init__(self, inp: int, out: int):
        super().__init__()
        width = out // len(self.BINS)
        self.branches = nn.ModuleList(ConvNorm(inp, width, 1) for _ in self.BINS)
        self.project = ConvNorm(inp + out, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        context = [x]
        for bins, branch in zip(self.BINS, self.branches, strict=True):
            pooled = branch(F.adaptive_avg_pool2d(x, bins))  # (B, out / 4, bins, bins)
            context.append(resize(pooled, size))
        y: Tensor = self.project(torch.cat(context, dim=1))
        return y


class FeatureFusion(nn.Module):
    """Sum of the detailed and the upsampled deep features at stride 8 (Fast-SCNN, section 3.2.3, table 3)."""

    def __init__(self, low: int, middle: int | None, deep: int, out: int):
        super().__init__()
        self.low = ConvNorm(low, out, 1, activation=False)
        self.middle = ConvNorm(middle, out, 1, activation=False) if middle else None
        # dilation 4 at stride 8: neighbours are a deep cell (32 pixels) apart
        self.spread = ConvNorm(deep, deep, 3, groups=deep, dilation=4)
        self.deep = ConvNorm(deep, out, 1, activation=False)

    def forward(self, low: Tensor, middle: Tensor, deep: Tensor) -> Tensor:
        size = low.shape[-2:]
        # in bfloat16, oneDNN's gradient of a dilated depthwise convolution is wrong, at times not even finite
        with torch.autocast(low.device.type, enabled=False):
            wide = self.spread(resize(deep.float(), size))
        x: Tensor = self.low(low) + self.deep(wide)  # (B, out, h, w)
        if self.middle is not None:
            x = x + resize(self.middle(middle), size)
        return F.relu(x)


class Trunk(nn.Module):
    """The layers that ImageNet weights exist for: learning to downsample, and the global extractor's bottlenecks.

    (B, 3, H, W) to features at strides 8, 16 and 32.
    """

    def __init__(self, widths: Widths):
        super().__init__()
        blocks, self.low_channels = build_rows(widths.stem, widths.downsample)
        self.downsample = nn.Sequential(ConvNorm(3, widths.stem, 3, stride=2), *blocks)
        # layers of downsample up to stride 4: the first one, and all rows but the last
        self.to_stride4 = 1 + sum(row.blocks for row in widths.downsample[:-1])
        self.global16, self.middle_channels = build_rows(self.low_channels, widths.global16)
        self.global32, self.deep_channels = build_rows(self.middle_channels, widths.global32)
        if widths.last:
            self.global32.append(ConvNorm(self.deep_channels, widths.last, 1))
            self.deep_channels = widths.last

    def freeze_early(self) -> None:
        """Stop the layers up to stride 4 from learning.

        Edges and textures are what ImageNet teaches best, and their layers work on the largest maps, so that they cost
        the most time to train.
        """
        self.downsample[: self.to_stride4].requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        low = self.downsample(x)  # stride 8
        middle = self.global16(low)  # stride 16
        deep = self.global32(middle)  # stride 32
        return low, middle, deep


class FastSCNN(nn.Module):
    """(B, 3, H, W) normalised images to (B, fuse, h, w) features; H and W are multiples of 32."""

    def __init__(self, widths: Widths):
        super().__init__()
        self.trunk = Trunk(widths)
        self.pooling = PyramidPooling(self.trunk.deep_channels, widths.pool)
        middle = self.trunk.middle_channels if widths.fuse_middle else None
        self.fusion = FeatureFusion(self.trunk.low_channels, middle, widths.pool, widths.fuse)

    def forward(self, x: Tensor) -> Tensor:
        low, middle, deep = self.trunk(x)
        features: Tensor = self.fusion(low, middle, self.pooling(deep))
        return features


ChannelSplit = tuple[int, int, int]  # channels of each task in a map, in CHANNEL_ORDER


class UnifiedHead(nn.Sequential):
    """Three convolutions in one branch; the channels of the last are all that the three tasks get.

    A skip connection joins the head's own input to the last layer's (as in DenseNet, Huang et al. 2017): features that
    pretraining learned for whole images then bypass the few channels that learn masks and boxes.
    """

    def __init__(self, inp: int, width: int, num_det: int, num_seg: int, num_cls: int):
        split = (FIRST_CLASS + num_det, num_seg, num_cls)
        last = nn.Conv2d(inp + width, sum(split), 1)
        super().__init__(ConvNorm(inp, width, 3), ConvNorm(width, width, 3), last)
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

    @torch.no_grad()
    def init_from_classifier(self, classifier: nn.Linear, known: dict[int, int]) -> None:
        """Let classification's channels start from a classifier of the head's features: {our class: its class}.

        The logits of an image are the mean over its cells, so that a linear classifier of mean features fits as it is.
        """
        last, first_cls = self.last, self.split[0] + self.split[1]
        assert last.bias is not None
        for our_class, its_class in known.items():
            target = first_cls + our_class
            last.weight[target, :, 0, 0] = classifier.weight[its_class]
            last.bias[target] = classifier.bias[its_class]


class UnifiedModel(nn.Module):
    """The whole network: (B, 3, H, W) float32 images in [0, 1], H and W multiples of 32, to Outputs."""

    mean: Tensor  # (1, 3, 1, 1), as std
    std: Tensor

    def __init__(self, widths: str, num_det: int, num_cls: int):
        super().__init__()
        table = WIDTHS[widths]
        self.widths = widths
        self.has_imagenet_trunk = False  # whether the trunk holds ImageNet weights; it then learns more slowly
        self.backbone = FastSCNN(table)
        self.head = UnifiedHead(table.fuse, table.head, num_det, len(VOC_CLASSES), num_cls)
        # constants that move with the model to its device and are not stored with its weights
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Outputs:
        return self.outputs(self.head_features(images))

    def features(self, images: Tensor) -> Tensor:
        """The head's input, (B, fuse, h, w), from images as forward takes them."""
        height, width = images.shape[-2:]
        assert height % MAX_STRIDE == 0 and width % MAX_STRIDE == 0, "height and width must be multiples of 32"
        features: Tensor = self.backbone((images - self.mean) / self.std)
        return features

    def head_features(self, images: Tensor) -> Tensor:
        """The input of the head's last layer, (B, fuse + head, h, w), from images as forward takes them."""
        return self.head.head_features(self.features(images))

    def outputs(self, hidden: Tensor) -> Outputs:
        """Outputs from the head's features (B, fuse + head, h, w), by the last layer."""
        grid = self.head.last(hidden).float()  # losses need float32 under autocast too
        channels = split_channels(grid, self.head.split)
        scale = STRIDE // 2 if self.training else STRIDE  # full size would cost training a quarter of its time
        height, width = hidden.shape[-2:]
        segmentation = resize(channels["seg"], (scale * height, scale * width))
        return Outputs(channels["det"], segmentation, mean_over_cells(channels["cls"]))


def split_channels(grid: Tensor, split: ChannelSplit) -> dict[Task, Tensor]:
    """The channels (B, C_task, h, w) of each task of a map (B, C, h, w)."""
    slices = torch.split(grid, list(split), dim=1)
    return dict(zip(CHANNEL_ORDER, slices, strict=True))


def task_channels(grid: Tensor, split: ChannelSplit, task: Task) -> Tensor:
    """The channels (B, C_task, h, w) of one task of a map (B, C, h, w), in float32."""
    return split_channels(grid.float(), split)[task]


def mean_over_cells(grid: Tensor) -> Tensor:
    """Average over the cells, (B, C, h, w) to (B, C): cell logits become image logits, cell features image features."""
    return grid.mean((2, 3))


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
