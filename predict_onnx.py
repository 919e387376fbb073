"""Mask, boxes and class of a photograph from an exported model: python predict_onnx.py MODEL.onnx PHOTO

It needs onnxruntime, numpy and Pillow alone: a program of yours may begin with a copy of it.
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

GREY = 127  # of the padding
STRIDE, BASE_SIZE, MAX_LOG_SIZE = 8, 32.0, 4.0  # of a cell's box, in pixels: see mtl_utils/detection.py
CANDIDATES, OVERLAP, SHOWN = 1000, 0.3, 0.3  # boxes before suppression; where two are one object; least score


def overlap(box, others):
    """IoU of a box (4,) with others (N, 4)."""
    shared = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    shared = shared.clip(0).prod(1)
    both = (box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(1)
    return shared / (both - shared)


onnxruntime.disable_telemetry_events()  # some of its builds report their use to their maker
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
about = {name: json.loads(value) for name, value in session.get_modelmeta().custom_metadata_map.items()}
size = about["eval_size"]
photo = ImageOps.exif_transpose(Image.open(sys.argv[2])).convert("RGB")

# letterbox: the longer side becomes `size`, grey fills the rest of the square
scale = size / max(photo.size)
width, height = (max(1, round(side * scale)) for side in photo.size)
square = Image.new("RGB", (size, size), (GREY, GREY, GREY))
square.paste(photo.resize((width, height), Image.Resampling.BILINEAR))
images = np.asarray(square, np.float32).transpose(2, 0, 1)[None] / 255  # (1, 3, size, size)
content = np.array([[0, 0, width, height]], np.float32)
detection, segmentation, classification = session.run(None, {"images": images, "content": content})

# each class's map, enlarged to the photograph
inside = (0, 0, width / STRIDE, height / STRIDE)  # in cells
maps = [Image.fromarray(logits).resize(photo.size, Image.Resampling.BILINEAR, inside) for logits in segmentation[0]]
mask = np.stack(maps).argmax(0)  # (H, W)

# a box, a confidence and class probabilities in each cell
rows, columns = detection.shape[2:]
cells = detection[0].reshape(-1, rows * columns).T  # (N, 5 + C)
y, x = np.divmod(np.arange(rows * columns), columns)
centre = (np.stack([x, y], 1) + 0.5 + cells[:, :2]) * STRIDE
half = BASE_SIZE / 2 * np.exp(np.minimum(cells[:, 2:4], MAX_LOG_SIZE))
boxes = np.concatenate([centre - half, centre + half], 1) / scale  # (N, 4) XYXY in pixels of the photograph
exponents = np.exp(cells[:, 5:] - cells[:, 5:].max(1, keepdims=True))
scores = exponents / exponents.sum(1, keepdims=True) / (1 + np.exp(-cells[:, 4:5]))  # (N, C)

# non-maximum suppression: of overlapping boxes of one class the best stays, moved to the weighted mean of them all
best = np.argsort(-scores, axis=None)[:CANDIDATES]
cell, label = np.unravel_index(best, scores.shape)
boxes, scores = boxes[cell], scores[cell, label]  # (K, 4), (K,)
kept, found = [], []
for index in np.flatnonzero(scores >= SHOWN):
    same = label == label[index]
    near = same & (overlap(boxes[index], boxes) > OVERLAP)
    if not near[kept].any():
        kept.append(index)
        box = np.average(boxes[near], axis=0, weights=scores[near])
        found.append((box.clip(0, [*photo.size] * 2), scores[index], label[index]))

names = about["names"]
print("mask:", ", ".join(f"{names['seg'][index]} {np.mean(mask == index):.0%}" for index in np.unique(mask)))
for box, score, index in found:
    print(f"box: {names['det'][index]} {score:.2f} at", *(round(float(side)) for side in box))
print("class:", names["cls"][classification[0].argmax()])
