"""What the detection channels mean: cells, boxes, which cell learns which object, and how a map becomes detections.

A raw map is (B, 5 + C, h, w). Cell (row, column) has its centre at ((column + .5) * 8, (row + .5) * 8) pixels. Its
box is  cx = centre_x + 8 tx,  cy = centre_y + 8 ty,  w = 32 exp(tw),  h = 32 exp(th), its confidence sigmoid(t4), its
class probabilities softmax(t5...). One detection's score is confidence times class probability (YOLO, Redmon et al.
2016, section 2). Many cells detect one object, each with a slightly different box: the one with the best score gives
the detection its score, and all of them together give it its box.
"""

from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import batched_nms, box_convert, box_iou, clip_boxes_to_image

from mtl_utils.tasks import shared_classes

STRIDE = 8  # one cell of the output map stands for 8 x 8 input pixels

# the channels of a cell
BOX = slice(0, 4)  # tx, ty, tw, th
CONFIDENCE = 4  # a logit
FIRST_CLASS = 5
CLASSES = slice(FIRST_CLASS, None)  # a logit for each class

BASE_SIZE = 32.0  # pixels: the box side that tw = th = 0 stands for, between the small and the large objects
MAX_LOG_SIZE = 4.0  # exp is cut here (32 e^4 = 1747 pixels) so that a wild prediction stays finite
MIN_POSITIVE_CELLS = 9  # every object asks for its nine nearest cells, which may lie outside a small box
CENTER_RADIUS = 0.2  # and for the cells within this fraction of its width and height around its centre, on each axis
EMPTY_LOGIT = -20.0  # of a confidence of 0 in `encode`
FULL_LOGIT = 20.0  # of a confidence or class probability of 1 in `encode`
PRE_NMS_TOP_K = 1000  # best (cell, class) pairs of an image that go through non-maximum suppression
NMS_IOU = 0.3  # two boxes of one class above this overlap (IoU) are one object, detected by two cells
MAX_DETECTIONS = 100  # an image: what COCO's AP counts

Detections = dict[str, Tensor]  # boxes (N, 4) XYXY float32 in pixels, scores (N,) in [0, 1], labels (N,) int64


def cell_centres(height: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """(h * w, 2) pixel coordinates x, y of the centres of all cells, row by row."""
    rows = torch.arange(height)
    columns = torch.arange(width)
    y, x = torch.meshgrid(rows, columns, indexing="ij")  # (h, w) each
    cells = torch.stack([x, y], dim=-1)  # (h, w, 2) int64
    centres = (cells.to(device) + 0.5) * STRIDE
    return centres.reshape(-1, 2)


def flatten(raw: Tensor) -> Tensor:
    """(B, 5 + C, h, w) to (B, h * w, 5 + C)."""
    return raw.flatten(2).transpose(1, 2)


def decode_boxes(cells: Tensor, centres: Tensor) -> Tensor:
    """Raw values (..., N, >= 4) of cells with centres (N, 2) to boxes (..., N, 4), XYXY in input pixels."""
    raw_box = cells[..., BOX]
    shift = raw_box[..., :2]  # of the box's centre from the cell's, in cells
    log_size = raw_box[..., 2:]  # of width and height, against BASE_SIZE
    centre = centres + STRIDE * shift
    log_size = log_size.clamp(max=MAX_LOG_SIZE)
    half = BASE_SIZE / 2 * log_size.exp()  # half of width and height, in pixels
    top_left = centre - half
    bottom_right = centre + half
    return torch.cat([top_left, bottom_right], dim=-1)


def encode_boxes(boxes: Tensor, centres: Tensor) -> Tensor:
    """Boxes (N, 4) XYXY, one for each cell centre (N, 2), to the raw values (N, 4) that decode to them."""
    centre_and_size = box_convert(boxes, "xyxy", "cxcywh")
    centre = centre_and_size[:, :2]
    size = centre_and_size[:, 2:]
    shift = (centre - centres) / STRIDE
    log_size = (size / BASE_SIZE).log()
    return torch.cat([shift, log_size], dim=-1)


def assign_targets(boxes: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Which cells learn which object: the nine nearest and the central ones (CENTER_RADIUS).

    Of two objects that ask for a cell the smaller gets it: one among smaller ones may keep fewer than nine. One that
    would keep none gets the nearest cell that is nobody's only one.

    A region that grows with the object (as in FoveaBox, Kong et al. 2020, section 3.3) spares the network the task of
    finding the very centre of a large one. boxes (M, 4) XYXY, centres (N, 2). Returns (cells, objects): two int64
    vectors of equal length.
    """
    top_left = boxes[:, :2]
    bottom_right = boxes[:, 2:]
    middles = (top_left + bottom_right) / 2  # (M, 2)
    sizes = bottom_right - top_left  # (M, 2)

    distance = (centres - middles[:, None]).abs()  # (M, N, 2), along each axis
    limit = CENTER_RADIUS * sizes[:, None]  # (M, 1, 2)
    candidates = (distance < limit).all(dim=2)  # (M, N) bool: the central cells
    count = min(MIN_POSITIVE_CELLS, len(centres))
    distance_to_middle = torch.cdist(middles, centres)  # (M, N)
    nearest = distance_to_middle.topk(count, largest=False).indices  # (M, count)
    candidates.scatter_(1, nearest, True)

    owner = torch.full((len(centres),), -1, device=boxes.device)  # (N,) int64: index of the object, -1 for none
    areas = sizes.prod(dim=1)
    largest_first = areas.argsort(descending=True)
    for index in largest_first.tolist():  # a later, smaller object takes cells from the larger ones
        owner[candidates[index]] = index
    give_every_object_a_cell(owner, distance_to_middle)
    is_positive = owner >= 0
    return is_positive.nonzero().squeeze(1), owner[is_positive]


def give_every_object_a_cell(owner: Tensor, distance: Tensor) -> None:
    """Give each object that owns no cell the nearest one that is not another's only cell.

    owner: (N,) int64, the object of each cell or -1, changed in place; distance: (M, N) of objects from cells. Only
    where there are more objects than cells may one be left without.
    """
    for index in range(len(distance)):
        if (owner == index).any():
            continue
        cells_of = owner[owner >= 0].bincount(minlength=len(distance))  # (M,): how many cells each object has
        is_free = owner < 0
        is_spare = cells_of[owner.clamp(min=0)] > 1
        available = is_free | is_spare  # (N,) bool
        if available.any():
            nearest = distance[index].masked_fill(~available, float("inf")).argmin()
            owner[nearest] = index


def centers_in_boxes(centres: Tensor, boxes: Tensor) -> Tensor:
    """(N,) bool: whether a centre (N, 2) lies in any of the boxes (M, 4)."""
    x = centres[:, None, 0]  # (N, 1)
    y = centres[:, None, 1]
    left, top, right, bottom = boxes.unbind(dim=1)  # (M,) each
    inside_x = (x >= left) & (x <= right)  # (N, M)
    inside_y = (y >= top) & (y <= bottom)
    return (inside_x & inside_y).any(dim=1)


def encode(target: dict[str, Tensor], classes: int, height: int, width: int) -> Tensor:
    """The raw map (5 + C, h, w) whose detections are the target's objects, with confidences of 0 and 1.

    Nothing in the package calls it: it is the specification of `decode` in executable form, and tests hold the two
    against each other. It is the exact inverse of `decode` as long as every object keeps a
    cell, and no two objects of one class overlap by more than NMS_IOU: those become one detection (5 % of the mini
    training objects have such a neighbour).
    """
    centres = cell_centres(height, width)
    cells, objects = assign_targets(target["boxes"], centres)
    boxes = target["boxes"][objects]
    labels = target["labels"][objects]
    raw = torch.zeros(height * width, FIRST_CLASS + classes)
    raw[:, CONFIDENCE] = EMPTY_LOGIT
    raw[:, CLASSES] = EMPTY_LOGIT
    raw_boxes = encode_boxes(boxes, centres[cells])
    raw[cells, BOX] = raw_boxes
    raw[cells, CONFIDENCE] = FULL_LOGIT
    raw[cells, FIRST_CLASS + labels] = FULL_LOGIT
    return raw.T.reshape(-1, height, width)


def decode(raw: Tensor) -> list[Detections]:
    """Detections of each image of raw maps (B, 5 + C, h, w), best first.

    Returns dicts of boxes (N, 4) XYXY in input pixels, scores (N,) in [0, 1] and labels (N,) int64, N <= 100.
    """
    height, width = raw.shape[-2:]
    centres = cell_centres(height, width, raw.device)
    images = flatten(raw.float())  # (B, h * w, 5 + C)
    return [decode_image(cells, centres) for cells in images]


def decode_image(cells: Tensor, centres: Tensor) -> Detections:
    """Detections of one image from its cells (h * w, 5 + C) with centres (h * w, 2)."""
    confidence = cells[:, CONFIDENCE].sigmoid()  # (h * w,)
    probabilities = cells[:, CLASSES].softmax(dim=1)  # (h * w, C)
    all_scores = confidence[:, None] * probabilities
    count = min(PRE_NMS_TOP_K, all_scores.numel())
    scores, index = all_scores.flatten().topk(count)  # (K,), best first
    num_classes = probabilities.shape[1]
    cell = index // num_classes
    labels = index % num_classes
    boxes = decode_boxes(cells[cell], centres[cell])  # (K, 4)

    kept = batched_nms(boxes, scores, labels, NMS_IOU)[:MAX_DETECTIONS]  # (N,) indices, best first
    same_class = labels[kept, None] == labels  # (N, K)
    return {
        "boxes": box_voting(boxes[kept], boxes, scores * same_class),
        "scores": scores[kept],
        "labels": labels[kept],
    }


def box_voting(chosen: Tensor, boxes: Tensor, weights: Tensor) -> Tensor:
    """Bounding-box voting: the weighted mean of all boxes that overlap a chosen one.

    S. Gidaris and N. Komodakis, "Object detection via a multi-region & semantic segmentation-aware CNN model", ICCV
    2015. chosen (N, 4) and boxes (K, 4) XYXY, the chosen among them; weights (N, K), the scores where both are of one
    class, else 0. Returns boxes (N, 4).
    """
    overlaps = box_iou(chosen, boxes) > NMS_IOU  # (N, K)
    weights = weights * overlaps
    total = weights.sum(1, keepdim=True)  # (N, 1)
    mean = weights @ boxes / total
    return torch.where(total > 0, mean, chosen)  # a box without area overlaps not even itself


VOC_BORDER = 2  # pixels by which VOC's unlabelled border hides the outline of an object on each side
MIN_PIECE_SHARE = 0.25  # a piece with fewer than this fraction of the largest piece's pixels may be a part of an object


class Piece(NamedTuple):
    """A connected piece of a mask."""

    box: list[int]  # XYXY in pixels, may reach VOC_BORDER pixels out of the image
    is_fragment: bool  # whether it is too small beside the largest piece to be taken for a whole object


def mask_objects(mask: Tensor, det_classes: tuple[str, ...]) -> dict[str, Tensor]:
    """A detection target (see data.py) from a VOC mask (H, W): one box around each connected piece of a shared class.

    VOC draws an unlabelled border around every object, so touching objects of one class are separate pieces. Small
    pieces may belong to an object that is hidden in part: they count as crowd, neither object nor background.
    """
    boxes, labels, crowd = [], [], []
    for label, voc_class in shared_classes(det_classes).items():
        for piece in connected_components(mask.numpy() == voc_class):
            boxes.append(piece.box)
            labels.append(label)
            crowd.append(piece.is_fragment)
    size = tuple(mask.shape)
    corners = torch.tensor(boxes, dtype=torch.float32)
    inside = clip_boxes_to_image(corners.reshape(-1, 4), size)  # (N, 4) without objects, too
    return {
        "boxes": tv_tensors.BoundingBoxes(inside, format="XYXY", canvas_size=size),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "crowd": torch.tensor(crowd, dtype=torch.bool),
    }


def connected_components(shown: np.ndarray) -> list[Piece]:
    """The connected pieces of a boolean map (H, W)."""
    numbered, count = ndimage.label(shown)  # 1, 2, ... on the pixels of each piece
    sizes = np.bincount(numbered.ravel(), minlength=count + 1)  # pixels of the background and of each piece
    least = MIN_PIECE_SHARE * sizes[1:].max(initial=0)
    pieces = []
    windows = ndimage.find_objects(numbered)
    for size, (rows, columns) in zip(sizes[1:], windows, strict=True):
        box = [
            columns.start - VOC_BORDER,
            rows.start - VOC_BORDER,
            columns.stop + VOC_BORDER,
            rows.stop + VOC_BORDER,
        ]
        is_fragment = bool(size < least)
        pieces.append(Piece(box, is_fragment))
    return pieces
