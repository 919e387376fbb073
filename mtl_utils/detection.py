"""What the detection channels mean: cells, boxes, which cell learns which object, and reading boxes off a map.

A raw map is (B, 5 + C, h, w). Cell (row, column) has its centre at ((column + .5) * 8, (row + .5) * 8) pixels. Its
box is  cx = centre_x + 8 tx,  cy = centre_y + 8 ty,  w = 32 exp(tw),  h = 32 exp(th), its confidence sigmoid(t4), its
class probabilities softmax(t5...). One detection's score is confidence times class probability (YOLO, Redmon et al.
2016, section 2). Many cells see one object, each a little differently: the surest gives the detection its score and all
of them its box. `encode` is the exact inverse of `decode` as long as no two objects of one class overlap by more than
SAME_OBJECT: those are read as one (5 % of the mini training objects have such a neighbour).
"""

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import batched_nms, box_convert, box_iou

from mtl_utils.model import STRIDE
from mtl_utils.tasks import shared_classes

BASE_SIZE = 32.0  # pixels: the box side that tw = th = 0 stands for, between the small and the large objects
MIN_POSITIVE_CELLS = 9  # cells that learn an object at least: the nearest to its centre
CENTER_RADIUS = 0.2  # and those whose distance from its centre is less than this part of its width and height
MAX_LOG_SIZE = 4.0  # exp is cut here (32 e^4 = 1747 pixels) so that a wild prediction stays finite
PRE_NMS_TOP_K = 1000  # best (cell, class) pairs of an image that go through non-maximum suppression
NMS_IOU = 0.3  # two boxes of one class above this overlap (IoU) are one object, seen from two cells
MAX_DETECTIONS = 100  # an image: what COCO's AP counts


def cell_centres(height: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """(h * w, 2) pixel coordinates x, y of the centres of all cells, row by row."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return (torch.stack([x, y], dim=-1).reshape(-1, 2).to(device) + 0.5) * STRIDE


def flatten(raw: Tensor) -> Tensor:
    """(B, 5 + C, h, w) to (B, h * w, 5 + C)."""
    return raw.flatten(2).transpose(1, 2)


def decode_boxes(cells: Tensor, centres: Tensor) -> Tensor:
    """Raw values (..., N, >= 4) of cells with centres (N, 2) to boxes (..., N, 4), XYXY in input pixels."""
    centre = centres + STRIDE * cells[..., :2]
    half = BASE_SIZE / 2 * cells[..., 2:4].clamp(max=MAX_LOG_SIZE).exp()
    return torch.cat([centre - half, centre + half], dim=-1)


def encode_boxes(boxes: Tensor, centres: Tensor) -> Tensor:
    """Boxes (N, 4) XYXY, one for each cell centre (N, 2), to the raw values (N, 4) that decode to them."""
    box = box_convert(boxes, "xyxy", "cxcywh")
    return torch.cat([(box[:, :2] - centres) / STRIDE, (box[:, 2:] / BASE_SIZE).log()], dim=-1)


def assign_targets(boxes: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Which cells learn which object: the NEAREST and the central ones; a cell that two want goes to the smaller.

    A region that grows with the object (as in FoveaBox, Kong et al. 2020, section 3.3) spares the network the task of
    telling the very centre of a large one. boxes (M, 4) XYXY, centres (N, 2). Returns (cells, objects): two int64
    vectors of equal length.
    """
    middle, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    nearest = torch.cdist(middle, centres).topk(min(MIN_POSITIVE_CELLS, len(centres)), largest=False).indices  # (M, 9)
    wanted = ((centres - middle[:, None]).abs() < CENTER_RADIUS * sides[:, None]).all(dim=2)  # (M, N)
    wanted.scatter_(1, nearest, True)
    owner = torch.full((len(centres),), -1, device=boxes.device)
    for m in sides.prod(dim=1).argsort(descending=True).tolist():
        owner[wanted[m]] = m
    cells = (owner >= 0).nonzero().squeeze(1)
    return cells, owner[cells]


def centers_in_boxes(centres: Tensor, boxes: Tensor) -> Tensor:
    """(N,) bool: whether a centre (N, 2) lies in any of the boxes (M, 4)."""
    x, y = centres[:, None].unbind(-1)
    left, top, right, bottom = boxes.unbind(-1)
    return ((x >= left) & (x <= right) & (y >= top) & (y <= bottom)).any(dim=1)


def encode(target: dict[str, Tensor], classes: int, height: int, width: int) -> Tensor:
    """The raw map (5 + C, h, w) that says exactly what the target says, sure of everything."""
    centres = cell_centres(height, width)
    cells, objects = assign_targets(target["boxes"], centres)
    raw = torch.zeros(height * width, 5 + classes)
    raw[:, 4:] = -20.0
    raw[cells, :4] = encode_boxes(target["boxes"][objects], centres[cells])
    raw[cells, 4] = 20.0
    raw[cells, 5 + target["labels"][objects]] = 20.0
    return raw.T.reshape(5 + classes, height, width)


def decode(raw: Tensor) -> list[dict[str, Tensor]]:
    """Detections of each image of raw maps (B, 5 + C, h, w), best first.

    Returns dicts of boxes (N, 4) XYXY in input pixels, scores (N,) in [0, 1] and labels (N,) int64, N <= 100.
    """
    centres = cell_centres(*raw.shape[-2:], device=raw.device)
    return [_decode_image(cells, centres) for cells in flatten(raw.float())]


def _decode_image(cells: Tensor, centres: Tensor) -> dict[str, Tensor]:
    """Detections of one image from its cells (h * w, 5 + C)."""
    scores = cells[:, 4:5].sigmoid() * cells[:, 5:].softmax(dim=1)
    best, index = scores.flatten().topk(min(PRE_NMS_TOP_K, scores.numel()))
    cell, labels = index // scores.shape[1], index % scores.shape[1]
    boxes = decode_boxes(cells[cell], centres[cell])
    keep = batched_nms(boxes, best, labels, NMS_IOU)[:MAX_DETECTIONS]
    same = labels[keep, None] == labels
    return {"boxes": box_voting(boxes[keep], boxes, best * same), "scores": best[keep], "labels": labels[keep]}


def box_voting(chosen: Tensor, boxes: Tensor, weights: Tensor) -> Tensor:
    """Bounding-box voting: the mean of all boxes that overlap a chosen one, weighted.

    S. Gidaris and N. Komodakis, "Object detection via a multi-region & semantic segmentation-aware CNN model", ICCV
    2015. chosen (N, 4) and boxes (K, 4) XYXY, the chosen among them; weights (N, K), the scores where both are of one
    class, else 0. Returns boxes (N, 4).
    """
    weights = weights * (box_iou(chosen, boxes) > NMS_IOU)
    total = weights.sum(1, keepdim=True)
    return torch.where(total > 0, weights @ boxes / total, chosen)  # a box without area overlaps not even itself


VOC_BORDER = 2  # pixels by which VOC's unlabelled border hides the outline of an object on each side
MIN_PIECE_SHARE = 0.25  # a piece with less than this part of the largest piece's pixels may be a part of another object


def mask_objects(mask: Tensor, det_classes: tuple[str, ...]) -> dict[str, Tensor]:
    """A detection target (see data.py) from a VOC mask (H, W): one box around each connected piece of a shared class.

    VOC draws an unlabelled border around every object, so touching objects of one class are separate pieces. Small
    pieces may belong to an object that something hides in part: they count as crowd, neither object nor background.
    """
    rows = []
    for label, index in shared_classes(det_classes).items():
        rows += [(box, label, crowd) for box, crowd in connected_components(mask.numpy() == index)]
    boxes = torch.tensor([box for box, _, _ in rows], dtype=torch.float32).reshape(-1, 4)
    size = tuple(mask.shape)
    boxes[:, 0::2], boxes[:, 1::2] = boxes[:, 0::2].clamp(0, size[1]), boxes[:, 1::2].clamp(0, size[0])
    return {
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),
        "labels": torch.tensor([label for _, label, _ in rows], dtype=torch.int64),
        "crowd": torch.tensor([crowd for _, _, crowd in rows], dtype=torch.bool),
    }


def connected_components(shown: np.ndarray) -> list[tuple[list[int], bool]]:
    """Box XYXY of each connected piece of a boolean map (H, W), and whether it is only a fragment."""
    numbered, count = ndimage.label(shown)
    pixels = np.bincount(numbered.ravel(), minlength=count + 1)[1:]
    found = []
    for (y, x), n in zip(ndimage.find_objects(numbered), pixels, strict=True):
        box = [x.start - VOC_BORDER, y.start - VOC_BORDER, x.stop + VOC_BORDER, y.stop + VOC_BORDER]
        found.append((box, bool(n < MIN_PIECE_SHARE * pixels.max())))
    return found
