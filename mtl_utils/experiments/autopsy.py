"""Why a network forgets: the first steps of stage 2 with and without replay, and what they change inside the network.

Features or classifier: V. Ramasesh et al., "Anatomy of catastrophic forgetting", ICLR 2021. The straight path between
two models: S. Mirzadeh et al., "Linear mode connectivity in multitask and continual learning", ICLR 2021.
"""

import copy
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtl_utils.data import Sample
from mtl_utils.evaluation import EVAL_BATCH, class_iou, confusion_matrix, predict
from mtl_utils.experiments.benchmark import timed
from mtl_utils.experiments.bootstrap import interval, resample_indices, times_chosen
from mtl_utils.experiments.outcomes import mean_iou
from mtl_utils.experiments.results import Estimate
from mtl_utils.model import UnifiedModel, split_channels
from mtl_utils.remedies.build import make_remedies
from mtl_utils.run import Run
from mtl_utils.stages import initial_state
from mtl_utils.tasks import VOC_CLASSES, Task
from mtl_utils.training import Trainer
from mtl_utils.transforms import Batch, to_batch

SIZE = 256  # side of the training images: small, so that all steps take a minute
EPOCHS = 2  # of the new task's images
EVERY = 40  # steps between two evaluations
IMAGES = 60  # of val, evaluated each time
TIMED = 5  # steps whose time is taken
ORDERS = 20  # of a change's channels at random
POINTS = 6  # models on the straight path, both ends included

BACKGROUND = 0  # its class
FATES = ("right", "another object", "background")  # what becomes of the pixels of true objects


# ---- the first steps of stage 2


def begin_stage(run: Run, task: Task, **changes: Any) -> Trainer:
    """A trainer that starts where the stage of a task does and lasts EPOCHS epochs of small images.

    changes: of the run's settings, by field; `copy_shared_classes` has acted by then and cannot be changed here. The
    stage before has to be finished.
    """
    model, buffer = initial_state(run, task)
    epochs = run.settings.epochs | {task: EPOCHS}
    sizes = {name: min(SIZE, side) for name, side in run.settings.train_size.items()}
    settings = replace(run.settings, epochs=epochs, train_size=sizes, **changes)
    remedies = make_remedies(settings, model, task, buffer)
    return Trainer(model, run.data(task, "train"), buffer, settings, run.device, remedies)


def take_steps(
    trainer: Trainer, val: Sequence[Sample], with_replay: bool, with_detection: bool = True
) -> dict[int, float]:
    """Train for EPOCHS epochs of detection; returns the mIoU on masks of val by the number of steps taken, 0 left out.

    Without detection each step sees the replayed masks alone: a control, for what the training itself changes.
    """
    scores: dict[int, float] = {}
    number = 0
    for number, new_batch in enumerate(new_batches(trainer), 1):
        batches = {trainer.task: new_batch} if with_detection else {}
        if with_replay:
            batches |= trainer.replay()  # the remedy: in each step a few stored images of the earlier task
        trainer.step(batches)
        if number % EVERY == 0:
            scores[number] = score_now(trainer, val)
    if number not in scores:
        scores[number] = score_now(trainer, val)
    return scores


def new_batches(trainer: Trainer) -> Iterator[Batch]:
    """The batches of the new task, epoch after epoch."""
    for _ in range(EPOCHS):
        yield from trainer.loader()


def score_now(trainer: Trainer, val: Sequence[Sample]) -> float:
    """The trained model's mIoU on some masks of val."""
    score = mask_score(trainer.model, val, trainer.settings.eval_size)
    trainer.model.train()
    return score


def mask_score(model: UnifiedModel, samples: Sequence[Sample], size: int) -> float:
    """The mIoU of a model on some masks; `size`: side of the input."""
    return mean_iou_of(pixels_by_image(model, samples, size))


def mean_iou_of(matrices: Tensor) -> float:
    """The mIoU of images' confusion matrices (images, 21, 21)."""
    return class_iou(matrices.sum(0)).nanmean().item()


def seconds_by_task(trainer: Trainer) -> dict[Task, float]:
    """Seconds of forward, losses and backward of each task's batch in a step, the median of TIMED steps.

    No step is taken: the weights stay as they are.
    """
    times: dict[Task, list[float]] = {task: [] for task in (*trainer.earlier, trainer.task)}
    for _, new_batch in zip(range(TIMED), trainer.loader(), strict=False):
        batches = trainer.replay() | {trainer.task: new_batch}
        for task, batch in batches.items():
            seconds = timed(partial(add_gradient, trainer, task, batch))
            times[task].append(seconds)
    return {task: statistics.median(seconds) for task, seconds in times.items()}


def add_gradient(trainer: Trainer, task: Task, batch: Batch) -> None:
    """What a step does with one batch: add the gradient of its loss to those of the other batches."""
    terms = trainer.batch_terms(task, batch)
    trainer.backward(terms, {})


# ---- where the pixels go


def pixels_by_image(model: UnifiedModel, samples: Sequence[Sample], size: int) -> Tensor:
    """Confusion matrices (images, 21, 21) int64 of a model's masks, true class by row; `size`: side of the input."""
    matrices = []
    for start in range(0, len(samples), EVAL_BATCH):
        batch = samples[start : start + EVAL_BATCH]
        images = [image for image, _ in batch]
        predictions = predict(model, images, size)
        for (_, target), prediction in zip(batch, predictions, strict=True):
            true = target["mask"].as_subclass(Tensor)
            matrices.append(confusion_matrix(true, prediction.mask, len(VOC_CLASSES)))
    return torch.stack(matrices)


def miou_difference(one: Tensor, other: Tensor) -> Estimate:
    """How much higher the mIoU of `one` is, with its interval over resamples of the images.

    Matrices (images, 21, 21) of two networks on the same images, as pixels_by_image makes them.
    """
    images = len(one)
    weights = [np.ones((1, images)), times_chosen(resample_indices(images))]  # every image once; then resamples
    value, draws = (mean_iou(one.numpy(), counts) - mean_iou(other.numpy(), counts) for counts in weights)
    low, high = interval(draws)
    return Estimate(value.item(), low, high)


def fates(matrix: Tensor) -> dict[str, float]:
    """The shares of the pixels of true objects that get each of FATES, from a confusion matrix (C, C)."""
    objects = matrix[BACKGROUND + 1 :].double()  # (C - 1, C)
    total = objects.sum()
    right = matrix.diagonal()[BACKGROUND + 1 :].sum() / total
    background = objects[:, BACKGROUND].sum() / total
    shares = (right, 1 - right - background, background)
    return {name: share.item() for name, share in zip(FATES, shares, strict=True)}


def invented(matrix: Tensor) -> float:
    """The share of background's pixels that are called an object, from a confusion matrix (C, C)."""
    background = matrix[BACKGROUND].double()  # (C,)
    return 1 - (background[BACKGROUND] / background.sum()).item()


# ---- what has changed


def row_cosines(before: UnifiedModel, after: UnifiedModel) -> dict[Task, Tensor]:
    """Cosine (C_task,) between each output channel's weights before and after, by task."""
    old = before.head.last.weight.detach().flatten(1)  # (C, inp)
    new = after.head.last.weight.detach().flatten(1)  # (C, inp)
    cosines = F.cosine_similarity(old, new, dim=1)  # (C,)
    by_task = split_channels(cosines[None], before.head.split)  # {task: (1, C_task)}
    return {task: values[0] for task, values in by_task.items()}


def with_rows_of(after: UnifiedModel, before: UnifiedModel, task: Task) -> UnifiedModel:
    """A copy of a model whose output channels of one task, weights and biases, are those of another one."""
    mixed = copy.deepcopy(after)
    new, old = mixed.head.last, before.head.last
    assert new.bias is not None and old.bias is not None
    numbers = torch.arange(len(new.bias))
    channels = split_channels(numbers[None], mixed.head.split)[task][0]  # (C_task,)
    with torch.no_grad():
        new.weight[channels] = old.weight[channels]
        new.bias[channels] = old.bias[channels]
    return mixed


@torch.inference_mode()
def feature_changes(before: UnifiedModel, after: UnifiedModel, images: Sequence[Tensor], size: int) -> dict[str, float]:
    """Relative change of the features after each part of the network: |after - before| / |before| over all images."""
    batch, content = to_batch(images, size)  # (B, 3, size, size) and (B, 4)
    old = features_by_part(before, batch, content)
    new = features_by_part(after, batch, content)
    changes = {}
    for part, features in old.items():
        change = (new[part] - features).norm() / features.norm()
        changes[part] = change.item()
    return changes


@torch.inference_mode()
def changes_read(before: UnifiedModel, after: UnifiedModel, images: Sequence[Tensor], size: int) -> dict[str, float]:
    """How far the last layer's inputs have moved, and how much of that the mask channels of `before` read.

    With inputs h, h' and rows W: |h' - h| / |h|; then |W (h' - h)| / |W h|; then the mean of the same over changes as
    large that have nothing to do with the rows, the channels of h' - h in random orders. W is taken less its mean over
    the classes: softmax does not depend on what all classes have in common.
    """
    batch, content = to_batch(images, size)  # (B, 3, size, size) and (B, 4)
    device = next(before.parameters()).device
    batch, content = batch.to(device), content.to(device)
    old = before.eval().head_features(batch, content)  # (B, C, h, w)
    change = after.eval().head_features(batch, content) - old
    weight = before.head.last.weight.flatten(1)  # (outputs, C)
    rows = weight[mask_channels(before)]  # (21, C)
    rows = rows - rows.mean(0)
    generator = torch.Generator().manual_seed(0)
    shuffled = []
    for _ in range(ORDERS):
        order = torch.randperm(change.shape[1], generator=generator).to(device)
        shuffled.append(read_by(rows, change[:, order]).norm().item())
    outputs = read_by(rows, old).norm().item()
    return {
        "inputs moved by": (change.norm() / old.norm()).item(),
        "mask outputs moved by": read_by(rows, change).norm().item() / outputs,
        "by a change at random": statistics.mean(shuffled) / outputs,
    }


def mask_channels(model: UnifiedModel) -> slice:
    """Which channels of the last layer are the masks'."""
    first = model.head.split[0]  # they follow those of detection
    return slice(first, first + len(VOC_CLASSES))


def part_swaps(before: UnifiedModel, after: UnifiedModel, samples: Sequence[Sample], size: int) -> pd.DataFrame:
    """mIoU on some masks where two networks exchange one shared part: a row for each part.

    Columns: the network before with this part of the one after, and the one after with this part of the one before.
    """
    rows = {}
    for part in shared_parts(before):
        harmed = mask_score(with_part_of(before, after, part), samples, size)
        mended = mask_score(with_part_of(after, before, part), samples, size)
        rows[part] = {"before, with this part of after": harmed, "after, with this part of before": mended}
    return pd.DataFrame.from_dict(rows, orient="index")


def with_part_of(model: UnifiedModel, other: UnifiedModel, part: str) -> UnifiedModel:
    """A copy of a model whose shared part of this name is that of another one."""
    mixed = copy.deepcopy(model)
    weights = shared_parts(other)[part].state_dict()
    shared_parts(mixed)[part].load_state_dict(weights)
    return mixed


def shared_parts(model: UnifiedModel) -> dict[str, nn.Module]:
    """The parts that learn and that all tasks share, but for the last layer."""
    return {
        "pooling": model.backbone.pooling,
        "fusion": model.backbone.fusion,
        "skip": model.backbone.skip,
        "head, layer 1": model.head[0],
        "head, layer 2": model.head[1],
    }


def read_by(rows: Tensor, inputs: Tensor) -> Tensor:
    """What rows (K, C) compute from inputs (B, C, h, w): (B, K, h, w)."""
    return torch.einsum("kc,bchw->bkhw", rows, inputs)


def features_by_part(model: UnifiedModel, batch: Tensor, content: Tensor) -> dict[str, Tensor]:
    """What each part of the network hands on for a batch (B, 3, H, W), each a tensor (B, C, h, w)."""
    parts = {"trunk": model.backbone.trunk} | shared_parts(model)
    found: dict[str, Tensor] = {}
    handles = []
    for name, part in parts.items():
        handles.append(part.register_forward_hook(keep_output(found, name)))
    device = next(model.parameters()).device
    model.eval()(batch.to(device), content.to(device))
    for handle in handles:
        handle.remove()
    return found


def keep_output(found: dict[str, Tensor], name: str):  # type: ignore[no-untyped-def]  # torch's hooks have no type
    """A hook that keeps a part's output under a name; of several maps the last one, the deepest."""

    def hook(_module: nn.Module, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
        found[name] = output[-1] if isinstance(output, tuple) else output

    return hook


# ---- the way from one model to the other


def scores_on_the_path(
    before: UnifiedModel, after: UnifiedModel, samples: Sequence[Sample], size: int
) -> dict[float, float]:
    """mIoU of the models (1 - a) before + a after, by a from 0 to 1; no BatchNorm may be left in them."""
    scores = {}
    for step in range(POINTS):
        share = step / (POINTS - 1)
        model = model_between(before, after, share)
        scores[share] = mask_score(model, samples, size)
    return scores


def model_between(before: UnifiedModel, after: UnifiedModel, share: float) -> UnifiedModel:
    """The model with the weights (1 - share) before + share after; no BatchNorm may be left in them."""
    model = copy.deepcopy(before)
    new = after.state_dict()
    mixed = {name: torch.lerp(value, new[name], share) for name, value in before.state_dict().items()}
    model.load_state_dict(mixed)
    return model
