"""Whether the answer to an exercise of the six notebooks is right; "02.1" is the first exercise of notebook 02.

A check gives a hint where the answer is wrong, never the answer.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtl_utils.detection import encode_boxes
from mtl_utils.evaluation import StageMetrics, class_iou
from mtl_utils.forgetting import forgetting_numbers, r_matrix

Case = Callable[..., str]  # of an answer, and of what it is about: a hint, "" if the answer is right

TOLERANCE = 0.006  # half a hundredth, and a little more: answers may be rounded to two digits


def check(name: str, answer: Any, *about: Any) -> None:
    """Print whether an answer is right. `about`: what the notebook has measured, where the exercise asks about it."""
    if answer is None:
        print(f"{name}: no answer yet")
        return
    try:
        hint = CASES[name](answer, *about)
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        hint = f"An answer of another kind is asked for ({error})."
    print(f"{name}: not yet. {hint}" if hint else f"{name}: right")


def near(answer: Any, expected: Any, tolerance: float = TOLERANCE) -> bool:
    """Whether numbers, or sequences of them, have the same shape and values."""
    found = np.asarray(answer, dtype=float)
    wanted = np.asarray(expected, dtype=float)
    if found.shape != wanted.shape:
        asked = f"{wanted.size} numbers" if wanted.ndim else "one number, not in a list,"
        raise ValueError(f"{asked} asked for")
    return bool(np.allclose(found, wanted, rtol=0, atol=tolerance))


def expects(expected: Any, hint: str, tolerance: float = TOLERANCE) -> Case:
    """The case of an exercise whose answer is known beforehand."""

    def case(answer: Any) -> str:
        if near(answer, expected, tolerance):
            return ""
        in_per_cent = near(np.asarray(answer, dtype=float) / 100, expected, tolerance)
        return "Give shares of 1, not per cent." if in_per_cent else hint

    return case


# ---- exercises whose answer depends on more than a number


def invented_classes(answer: Any) -> str:
    """01.2: the classes that bilinear interpolation finds between background and person."""
    mask = torch.tensor([[[[0.0, 15.0]]]])
    wide = torch.nn.functional.interpolate(mask, size=(1, 4), mode="bilinear")  # (1, 1, 1, 4)
    values = wide.round().flatten().int().tolist()
    invented = set(values) - {0, 15}
    answers = {answer} if isinstance(answer, int) else set(answer)
    if answers == invented:
        return ""
    return "The shares of person are 0, .25, .75 and 1, by the pixels' centres. Leave out 0 and 15."


def mean_logits(answer: Any, model: torch.nn.Module, images: Tensor) -> str:
    """02.3: the class logits (1, C) of an image, from its mean head features."""
    with torch.no_grad():
        device = next(model.parameters()).device
        expected = model(images.to(device)).classification.flatten()  # (C,)
    found = torch.as_tensor(answer).to(device).flatten()
    hint = "Put the mean features through model.head.last, and keep the channels after those of detection and masks."
    if found.shape != expected.shape:
        return hint
    error = (found - expected).norm() / expected.norm()
    return "" if error < 0.02 else hint


def most_background(answer: Any, confusion: list[list[int]], names: tuple[str, ...]) -> str:
    """03.3: the class that loses the largest share of its pixels to background, from a confusion matrix."""
    matrix = torch.tensor(confusion, dtype=torch.float64)
    pixels = matrix.sum(1)  # (C,), true ones of each class
    share = matrix[:, 0] / pixels  # NaN for a class that these images do not hold
    share[0] = 0  # background itself
    worst = int(share.nan_to_num().argmax())
    hint = "Divide the first column by the sum of each row, and leave background itself out."
    return "" if answer == names[worst] else hint


def kept(answer: Any, before: float, after: float) -> str:
    """04.3: the per cent of an earlier task's metric that is left after a stage."""
    hint = "Divide mIoU after this stage by mIoU after stage 1, in per cent."
    return "" if near(answer, 100 * after / before, tolerance=0.6) else hint


def share_of_right_images(answer: Any, value: float) -> str:
    """05.2: Top-1, from predictions of the student's own loop."""
    return "" if near(answer, value, tolerance=1e-4) else "Compare each image's most probable class with its label."


def backward_transfer(answer: Any, metrics: StageMetrics) -> str:
    """06.3: the mean over the first two tasks of R[3, j] - R[j, j] of the run."""
    expected = forgetting_numbers(r_matrix(metrics))["BWT"]
    hint = "Mean over the first two tasks of the last row of R less the diagonal."
    return "" if near(answer, expected, tolerance=0.0006) else hint


def dog_iou() -> float:
    """03.1: the IoU of dog, from its confusion matrix with background."""
    matrix = torch.tensor([[880, 20], [40, 60]])
    return float(class_iou(matrix)[1])


def raw_box() -> list[float]:
    """04.2: the raw values of a box."""
    box = torch.tensor([[8.0, 0, 40, 32]])
    centre = torch.tensor([[20.0, 12]])
    values: list[float] = encode_boxes(box, centre)[0].tolist()
    return values


CASES: dict[str, Case] = {
    "01.1": expects(
        (0.73, 0.73 / 21), "Accuracy counts pixels; mIoU is a mean over 21 classes, twenty of them with 0."
    ),
    "01.2": invented_classes,
    "01.3": expects(40, "Mirrored, the left edge x of a box 20 wide becomes 100 - x - 20.", tolerance=0.1),
    "02.1": expects(
        (9 * 128 * 128, 9 * 128 + 128 * 128), "One filter a pair of channels; or one a channel, then 1 x 1.", 0.1
    ),
    "02.2": expects((1.0, 4.0), "Sort 2 (x - 1) / sqrt(4) + 5 by powers of x."),
    "02.3": mean_logits,
    "03.1": expects(dog_iou(), "The union holds what is missed and what is wrongly called dog."),
    "03.2": expects((10_000 / 10_100, 0.5), "First add the pixels of both images, then divide."),
    "03.3": most_background,
    "04.1": expects((1.0, 0.5), "Precision at the place of the only object: right ones so far over detections so far."),
    "04.2": expects(raw_box(), "Centre minus cell centre, over 8; logarithm of side over 32."),
    "04.3": kept,
    "05.1": expects(0.50, "The least cross-entropy is the entropy of the smoothed target.", tolerance=0.011),
    "05.2": share_of_right_images,
    "05.3": expects(((0, 1), (-1, 1)), "First minimise the new loss alone, from (0, 0); then the sum.", tolerance=0.02),
    "06.1": expects(0.039, "The standard error of a share p of n images is sqrt(p (1 - p) / n).", tolerance=0.0006),
    "06.2": expects((True, False, False), "Baseline less .05, and .95 times baseline.", tolerance=0.1),
    "06.3": backward_transfer,
}
