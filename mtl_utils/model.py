"""Fast-SCNN with one single-branch head: detection, segmentation and classification from one output map.

Backbone: R. Poudel, S. Liwicki, R. Cipolla, "Fast-SCNN: Fast Semantic Segmentation Network", BMVC 2019 (section 3).
Its bottlenecks are those of M. Sandler et al., "MobileNetV2", CVPR 2018; with MobileNetV2's own widths the public
ImageNet weights of that network load into them. The activation is MobileNetV2's ReLU6 throughout, where Fast-SCNN has
ReLU. Shapes below: B images of H x W pixels, h = H / 8, w = W / 8.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mtl_utils.tasks import VOC_CLASSES

STRIDE = 8  # one cell of the output map stands for 8 x 8 input pixels
IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of RGB in [0, 1]
IMAGENET_STD = (0.229, 0.224, 0.225)
LAST = "head.2."  # what the names of the head's last layer begin with in a model's state dict
CONFIDENCE_PRIOR = 0.01  # confidence that every cell starts with (focal loss, Lin et al. 2017, section 4.1)


class Outputs(NamedTuple):
    """What one forward gives for a batch."""

    detection: Tensor  # (B, 5 + C_det, h, w): raw cx, cy, w, h, confidence logit and class logits of every cell
    segmentation: Tensor  # (B, 21, H, W): class logits of every input pixel; in training mode half of each side
    classification: Tensor  # (B, C_cls): class logits of the image


class ConvNorm(nn.Sequential):
    """Convolution, BatchNorm and, unless it is None, an activation; BatchNorm can be folded into the convolution."""

    def __init__(self, inp: int, out: int, kernel: int, stride=1, groups=1, dilation=1, act=nn.ReLU6):
        conv = nn.Conv2d(inp, out, kernel, stride, kernel // 2 * dilation, dilation, groups, bias=False)
        super().__init__(conv, nn.BatchNorm2d(out), act(inplace=True) if act else nn.Identity())

    def fold(self) -> None:
        """Make convolution and BatchNorm one convolution that gives the same in eval mode."""
        if isinstance(self[1], nn.BatchNorm2d):
            training = self.training
            self.eval()
            self[0] = fuse_conv_bn_eval(self[0], self[1]).requires_grad_()  # else the new bias would be frozen
            self[1] = nn.Identity()
            self.train(training)


class Bottleneck(nn.Module):
    """Inverted residual: expand by 1 x 1, filter channels by 3 x 3, project by a linear 1 x 1 (MobileNetV2, 3.3)."""

    def __init__(self, inp: int, out: int, stride: int, expand: int):
        super().__init__()
        wide = inp * expand
        layers = [ConvNorm(inp, wide, 1)] if expand > 1 else []
        layers += [ConvNorm(wide, wide, 3, stride, groups=wide), ConvNorm(wide, out, 1, act=None)]
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and inp == out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


class Separable(nn.Sequential):
    """Depthwise 3 x 3 then pointwise 1 x 1 convolution, no activation between (Fast-SCNN, 3.2.1: DSConv)."""

    def __init__(self, inp: int, out: int, stride: int):
        super().__init__(ConvNorm(inp, inp, 3, stride, groups=inp, act=None), ConvNorm(inp, out, 1))


@dataclass(frozen=True)
class Widths:
    """Channel widths of Fast-SCNN's modules; a row is (expansion, channels, blocks, stride of the first block)."""

    stem: int  # channels of the first convolution, stride 2
    downsample: tuple  # rows from stride 2 to stride 8; expansion 0 means a separable convolution
    global16: tuple  # rows at stride 16
    global32: tuple  # rows at stride 32
    last: int | None  # channels of a 1 x 1 convolution behind the rows, None for none
    pool: int  # channels of the pyramid pooling module
    fuse: int  # channels of feature fusion, what the head reads
    head: int  # channels of the head's two inner convolutions
    fuse_middle: bool  # whether stride 16 takes part in feature fusion


WIDTHS = {
    # table 1 of the Fast-SCNN paper
    "paper": Widths(
        stem=32,
        downsample=((0, 48, 1, 2), (0, 64, 1, 2)),
        global16=((6, 64, 3, 2),),
        global32=((6, 96, 3, 2), (6, 128, 3, 1)),
        last=None,
        pool=128,
        fuse=128,
        head=128,
        fuse_middle=False,
    ),
    # table 2 of the MobileNetV2 paper, all of it, distributed over Fast-SCNN's modules
    "mobilenetv2": Widths(
        stem=32,
        downsample=((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2)),
        global16=((6, 64, 4, 2), (6, 96, 3, 1)),
        global32=((6, 160, 3, 2), (6, 320, 1, 1)),
        last=1280,
        pool=256,
        fuse=256,
        head=128,
        fuse_middle=True,
    ),
}


def build_rows(inp: int, rows: tuple) -> tuple[nn.Sequential, int]:
    """The blocks of some rows of a Widths table, and the channels that leave them."""
    blocks = []
    for expand, out, count, stride in rows:
        for i in range(count):
            step = stride if i == 0 else 1
            blocks.append(Bottleneck(inp, out, step, expand) if expand else Separable(inp, out, step))
            inp = out
    return nn.Sequential(*blocks), inp


class PyramidPooling(nn.Module):
    """Context of the whole image at four scales (PSPNet, Zhao et al. 2017, 3.2): (B, inp, ...) to (B, out, ...)."""

    BINS = (1, 2, 3, 6)

    def __init__(self, inp: int, out: int):
        super().__init__()
        self.branches = nn.ModuleList(ConvNorm(inp, out // len(self.BINS), 1) for _ in self.BINS)
        self.project = ConvNorm(inp + out, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = (branch(F.adaptive_avg_pool2d(x, n)) for n, branch in zip(self.BINS, self.branches, strict=True))
        return self.project(torch.cat([x, *(resize(p, x.shape[-2:]) for p in pooled)], dim=1))


class FeatureFusion(nn.Module):
    """Sum of the detailed and the upsampled deep features at stride 8 (Fast-SCNN, section 3.2.3, table 3)."""

    def __init__(self, low: int, middle: int | None, deep: int, out: int):
        super().__init__()
        self.low = ConvNorm(low, out, 1, act=None)
        self.middle = ConvNorm(middle, out, 1, act=None) if middle else None
        self.spread = ConvNorm(deep, deep, 3, groups=deep, dilation=4)  # steps of one deep cell, at stride 8
        self.deep = ConvNorm(deep, out, 1, act=None)

    def forward(self, low: Tensor, middle: Tensor, deep: Tensor) -> Tensor:
        size = low.shape[-2:]
        with torch.autocast(low.device.type, enabled=False):  # in bfloat16, oneDNN's gradient of a dilated depthwise
            wide = self.spread(resize(deep.float(), size))  # convolution is wrong, at times not even finite
        x = self.low(low) + self.deep(wide)
        if self.middle is not None:
            x = x + resize(self.middle(middle), size)
        return F.relu(x)


class Trunk(nn.Module):
    """The layers that ImageNet weights exist for: learning to downsample, and the global extractor's bottlenecks."""

    def __init__(self, w: Widths):
        super().__init__()
        blocks, self.low = build_rows(w.stem, w.downsample)
        self.downsample = nn.Sequential(ConvNorm(3, w.stem, 3, 2), *blocks)
        self.to_stride4 = 1 + sum(count for _, _, count, _ in w.downsample[:-1])  # blocks of downsample up to stride 4
        self.global16, self.middle = build_rows(self.low, w.global16)
        self.global32, self.deep = build_rows(self.middle, w.global32)
        if w.last:
            self.global32.append(ConvNorm(self.deep, w.last, 1))
            self.deep = w.last

    def freeze_early(self) -> None:
        """Stop the layers up to stride 4 from learning: edges and textures are ImageNet's best part, and the dearest
        to train, since they work on the largest maps."""
        self.downsample[: self.to_stride4].requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        low = self.downsample(x)
        middle = self.global16(low)
        return low, middle, self.global32(middle)


class FastSCNN(nn.Module):
    """(B, 3, H, W) normalised images to (B, fuse, h, w) features; H and W are multiples of 32."""

    def __init__(self, w: Widths):
        super().__init__()
        self.trunk = Trunk(w)
        self.pooling = PyramidPooling(self.trunk.deep, w.pool)
        self.fusion = FeatureFusion(self.trunk.low, self.trunk.middle if w.fuse_middle else None, w.pool, w.fuse)

    def forward(self, x: Tensor) -> Tensor:
        low, middle, deep = self.trunk(x)
        return self.fusion(low, middle, self.pooling(deep))


class UnifiedHead(nn.Sequential):
    """Three convolutions in one branch; the channels of the last are all that the three tasks get.

    The last reads what enters the head beside what the other two make of it (as in DenseNet, Huang et al. 2017): what
    stage 0 knows of whole images need not pass through the few channels that learn masks and boxes.
    """

    def __init__(self, inp: int, width: int, num_det: int, num_seg: int, num_cls: int):
        last = nn.Conv2d(inp + width, 5 + num_det + num_seg + num_cls, 1)
        super().__init__(ConvNorm(inp, width, 3), ConvNorm(width, width, 3), last)
        self.split = (5 + num_det, num_seg, num_cls)  # channels of detection, segmentation, classification
        nn.init.normal_(last.weight, std=0.01)
        nn.init.zeros_(last.bias)
        nn.init.constant_(last.bias[4:5], torch.logit(torch.tensor(CONFIDENCE_PRIOR)).item())

    def forward(self, x: Tensor) -> Tensor:
        return self[2](self.head_features(x))

    def head_features(self, x: Tensor) -> Tensor:
        """What the last layer reads: (B, inp + width, h, w)."""
        return torch.cat([x, self[1](self[0](x))], dim=1)

    @torch.no_grad()
    def copy_segmentation_classes(self, shared: dict[int, int]) -> None:
        """Let detection's class channels start as copies of segmentation's: {detection class: segmentation class}."""
        last, (det, _, _) = self[-1], self.split
        for ours, theirs in shared.items():
            last.weight[5 + ours], last.bias[5 + ours] = last.weight[det + theirs], last.bias[det + theirs]

    @torch.no_grad()
    def init_from_classifier(self, classifier: nn.Linear, known: dict[int, int]) -> None:
        """Let classification's channels start from a classifier of the hidden features: {our class: its class}.

        The logits of an image are the mean over its cells, so that a linear classifier of mean features fits as it is.
        """
        last, first = self[-1], sum(self.split[:2])
        for ours, theirs in known.items():
            last.weight[first + ours, :, 0, 0] = classifier.weight[theirs]
            last.bias[first + ours] = classifier.bias[theirs]


class UnifiedModel(nn.Module):
    """The whole network: (B, 3, H, W) float32 images in [0, 1], H and W multiples of 32, to Outputs."""

    def __init__(self, widths: str, num_det: int, num_cls: int):
        super().__init__()
        self.widths = widths
        self.has_imagenet_trunk = False  # whether the trunk holds ImageNet weights; it then learns more slowly
        self.backbone = FastSCNN(WIDTHS[widths])
        self.head = UnifiedHead(WIDTHS[widths].fuse, WIDTHS[widths].head, num_det, len(VOC_CLASSES), num_cls)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Outputs:
        return self.outputs(self.head_features(images))

    def head_features(self, images: Tensor) -> Tensor:
        """What the head's last layer reads: (B, fuse + head, h, w) from images as forward takes them."""
        return self.head.head_features(self.features(images))

    def outputs(self, hidden: Tensor) -> Outputs:
        """What the head's last layer makes of it."""
        detection, segmentation, classification = self.head[-1](hidden).float().split(self.head.split, dim=1)
        scale = STRIDE // 2 if self.training else STRIDE  # full size would cost training a quarter of its time
        size = [side * scale for side in hidden.shape[-2:]]
        return Outputs(detection, resize(segmentation, size), classification.mean((2, 3)))

    def features(self, images: Tensor) -> Tensor:
        """What the head reads: (B, fuse, h, w) from images as forward takes them."""
        assert images.shape[-1] % 32 == 0 and images.shape[-2] % 32 == 0, "height and width must be multiples of 32"
        return self.backbone((images - self.mean) / self.std)


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear interpolation of (B, C, h, w) to (B, C, *size)."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def fold_batchnorm(module: nn.Module) -> None:
    """Fold every BatchNorm below `module` into its convolution: from here on no statistics exist that could drift."""
    for block in module.modules():
        if isinstance(block, ConvNorm):
            block.fold()


def count_parameters(module: nn.Module) -> int:
    """Number of trainable values."""
    return sum(p.numel() for p in module.parameters())
