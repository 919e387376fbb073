"""The training loop: the new task's images beside replayed ones of the earlier tasks, and remedies against forgetting.

A remedy is an extra loss beside replay, weighted by one setting; remedies can be combined. None of them changes the
network or the tasks' own losses.
"""

import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, Dataset

from mtl_utils import environment, processes
from mtl_utils.data import MiniSet, Sample
from mtl_utils.files import UserError
from mtl_utils.losses import class_weights, classification_loss, detection_loss, pixel_counts, segmentation_loss
from mtl_utils.model import Outputs, UnifiedModel, place_model
from mtl_utils.progress import progress
from mtl_utils.replay import ReplayBuffer
from mtl_utils.settings import Settings
from mtl_utils.tasks import TASK_NAMES, TASKS, Task
from mtl_utils.transforms import Batch, collate, stack_batch, strong_augmentation, to_device, weak_augmentation

TaskLoss = Callable[..., Tensor]  # of (outputs, targets)

# names of the loss terms that belong to no single task; the others are named by their task
BOXES_FROM_MASKS = "boxes_from_masks"
REMEDIES = "remedies"

MAX_SEED = 2**62  # of the random numbers of an image
MAX_WORKERS = 8


class Remedy:
    """An extra loss against forgetting: three hooks, each of which does nothing unless a subclass defines it.

    Replay itself is no remedy in this sense: the trainer replays, and stages.store_exemplars fills the buffer.
    """

    def batch_loss(self, trainer: "Trainer", task: Task, batch: Batch, features: Tensor) -> Tensor | float:
        """The loss () of one batch of a task, new or replayed, after its forward; 0 for nothing.

        features: (B, input + head, h, w), what the head's last layer reads.
        """
        return 0.0

    def step_loss(self, trainer: "Trainer") -> Tensor | float:
        """The loss () of a whole step, whatever its batches are; 0 for nothing."""
        return 0.0

    def after_stage(self, trainer: "Trainer", model: UnifiedModel) -> None:
        """Store beside the exemplars in `trainer.buffer` what the remedy needs later; `model` is the stage's result."""


@dataclass
class EpochRecord:
    """One epoch of a stage's history."""

    epoch: int  # from 1
    # mean over the steps of every loss term; their sum is what was minimised: the tasks' weighted supervised losses by
    # task, BOXES_FROM_MASKS and REMEDIES where they occur
    loss: dict[str, float]
    lr: float  # of all layers but the trunk, after the last step
    seconds: float
    val: dict[Task, float] | None = None  # the tasks' metrics on val, in the epochs that end with an evaluation

    @property
    def total_loss(self) -> float:
        """The sum of all loss terms."""
        return sum(self.loss.values())

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as they are stored in JSON and in checkpoints; no "val" without an evaluation."""
        values = {"epoch": self.epoch, "loss": self.loss, "lr": self.lr, "seconds": self.seconds}
        return values if self.val is None else values | {"val": self.val}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "EpochRecord":
        """The inverse of as_dict. Raises TypeError where a value is missing or unknown."""
        return cls(**values)


@dataclass
class BestEpoch:
    """The epoch whose averaged weights a stage hands on."""

    epoch: int  # from 1
    loss: float  # the sum of its loss terms
    weights: dict[str, Tensor]  # a state dict of the model, on the CPU

    def as_dict(self) -> dict[str, Any]:
        """Plain values and tensors, as they are stored in checkpoints."""
        return {"epoch": self.epoch, "loss": self.loss, "model": self.weights}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "BestEpoch":
        """The inverse of as_dict."""
        return cls(values["epoch"], values["loss"], values["model"])


class SeededImages(Dataset[Sample]):
    """A set whose images are augmented with random numbers of their own, by (index, seed)."""

    def __init__(self, dataset: MiniSet, transform: nn.Module):
        self.dataset = dataset
        self.transform = transform

    def __getitem__(self, item: tuple[int, int]) -> Sample:
        index, seed = item
        image, target = self.dataset.samples[index]
        # torch.manual_seed would also seed the GPU, where nothing is augmented
        with torch.random.fork_rng(devices=[]):  # what else draws random numbers goes on as before
            torch.default_generator.manual_seed(seed)
            augmented: Sample = self.transform(image, target)
        return augmented


class Trainer:
    """Trains a model on one task while replaying earlier ones.

    `history` holds a record for each finished epoch; `best` the averaged weights of the epoch with the lowest training
    loss, all terms together, among the last epochs, whose weak augmentation makes their losses comparable (None before
    the first of them). It is never chosen on val, since val is what the results are reported on.
    """

    def __init__(
        self,
        model: UnifiedModel,
        dataset: MiniSet,
        buffer: ReplayBuffer,
        settings: Settings,
        device: str,
        remedies: Sequence[Remedy] = (),
    ):
        self.task = dataset.task
        self.dataset = dataset
        self.buffer = buffer
        self.settings = settings
        self.device = device
        self.remedies = remedies
        self.earlier = replayed_tasks(settings, self.task, buffer)
        self.model = place_model(model, device)
        processes.join_batchnorm(self.model)
        # the averaged weights are what is evaluated and handed on; BatchNorm's statistics are averaged with them
        average = partial(ema_update, settings.ema_decay)
        self.ema = AveragedModel(self.model, avg_fn=average, use_buffers=True)

        seed = 10 * settings.seed + TASKS.index(self.task)  # every stage has random numbers of its own
        torch.manual_seed(seed)  # augmentation
        self.generator = torch.Generator().manual_seed(seed)  # order of images, replay

        self.steps = max(1, len(dataset) // settings.batch_size[self.task])  # in an epoch
        freeze_layers(self.model, settings, self.task)
        trunk_lr, lr = learning_rates(self.model, settings, self.task)
        groups = parameter_groups(self.model, trunk_lr, lr)
        # fused: all weights of a group in one kernel
        self.optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay, fused=True)
        total_steps = self.steps * settings.epochs[self.task]
        factor = partial(warmup_cosine, total=total_steps, warmup=settings.warmup_fraction)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor)
        self.scaler = torch.amp.GradScaler(enabled=device == "cuda")  # a CPU's bfloat16 has the range of float32
        self.losses = make_losses(dataset, buffer, device)
        self.history: list[EpochRecord] = []
        self.best: BestEpoch | None = None

    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""
        return len(self.history) >= self.settings.epochs[self.task]

    @property
    def weak_now(self) -> bool:
        """Whether the running epoch is one of the last, with weak augmentation; at least one is."""
        epochs = self.settings.epochs[self.task]
        weak_epochs = max(1, round(self.settings.weak_augmentation * epochs))  # one at least, for the best to be one
        return len(self.history) >= epochs - weak_epochs

    def epoch(self, bar: Any = None) -> EpochRecord:
        """Train for one pass over the task's images; returns the epoch's record and keeps it in the history."""
        started = time.perf_counter()
        weak_epoch = self.weak_now  # asked before the history grows
        processes.share_random_state(self.generator)
        totals = dict.fromkeys([*self.earlier, self.task], 0.0)  # of each loss term over the steps
        self.model.train()
        for new_batch in named_errors(self.loader()):
            batches = {self.task: new_batch} | self.replay()  # the new task's batch is the first of a step
            for term, value in self.step(batches).items():
                totals[term] = totals.get(term, 0.0) + value
            if bar is not None:
                bar.update()
        record = EpochRecord(
            epoch=len(self.history) + 1,
            loss={term: total / self.steps for term, total in totals.items()},
            lr=float(self.schedule.get_last_lr()[-1]),
            seconds=time.perf_counter() - started,
        )
        self.history.append(record)
        if weak_epoch:
            self.keep_if_best(record)
        return record

    def keep_if_best(self, record: EpochRecord) -> None:
        """Keep a copy of the averaged weights where no earlier epoch had a lower loss."""
        loss = record.total_loss
        if self.best is not None and loss >= self.best.loss:
            return
        # copies, since the average goes on changing in place
        weights = {name: value.detach().cpu().clone() for name, value in self.ema.module.state_dict().items()}
        self.best = BestEpoch(record.epoch, loss, weights)

    def step(self, batches: dict[Task, Batch]) -> dict[str, float]:
        """One optimiser step on the sum of all loss terms; each task has its own forward at its own image size.

        Returns the value of every term (see EpochRecord.loss). Raises UserError at the first that is not finite.
        """
        values: dict[str, float] = {}
        self.optimizer.zero_grad()
        # gradients add up over the batches, so that only one batch's activations are in memory at a time
        for task, batch in batches.items():
            terms = self.batch_terms(task, batch)
            self.backward(terms, values)
        self.backward(self.step_terms(), values)

        processes.average_gradients(self.model.parameters())  # of the shares of several processes
        self.scaler.unscale_(self.optimizer)  # the norm is that of the true gradient
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.max_grad_norm)
        if norm.isfinite():  # a rare gradient in half precision is not: it would spoil every weight
            self.scaler.step(self.optimizer)
        self.scaler.update()  # the factor that keeps small float16 gradients from becoming 0
        self.schedule.step()  # after every step, not after every epoch
        self.ema.update_parameters(self.model)
        return values

    def batch_terms(self, task: Task, batch: Batch) -> dict[str, Tensor]:
        """The loss terms of one task's batch, new or replayed.

        `replay_weight` weighs what an earlier task's labels teach; a remedy has a weight of its own.
        """
        batch = to_device(batch, self.device)
        # all images, but where several processes share them
        images = processes.own_rows(batch.images)
        content = processes.own_rows(batch.content)
        with mixed_precision(self.device):
            features, deep = self.model.features(images, content)
            hidden = self.model.head.head_features(features)  # (B, input + head, h, w)
            outputs = self.model.outputs(hidden, deep, content)
        count = len(batch.images)
        outputs = whole_batch(outputs, count)
        if self.remedies:
            hidden = processes.gather_rows(hidden, count)

        weight = 1.0 if task == self.task else self.settings.replay_weight
        terms = {task: weight * self.losses[task](outputs, batch.targets)}
        if task == "seg" and self.task != "seg" and self.settings.boxes_from_masks:
            # a stored mask's target also holds boxes around its objects: the same forward teaches both tasks
            terms[BOXES_FROM_MASKS] = weight * self.losses["det"](outputs, batch.targets)
        with mixed_precision(self.device):
            extra = sum((r.batch_loss(self, task, batch, hidden) for r in self.remedies), start=0.0)
        if isinstance(extra, Tensor):
            terms[REMEDIES] = extra
        return terms

    def step_terms(self) -> dict[str, Tensor]:
        """The loss terms of a whole step: what the remedies add once, whatever the batches are."""
        with mixed_precision(self.device):
            extra = sum((remedy.step_loss(self) for remedy in self.remedies), start=0.0)
        return {REMEDIES: extra} if isinstance(extra, Tensor) else {}

    def backward(self, terms: dict[str, Tensor], values: dict[str, float]) -> None:
        """Add the gradient of the sum of some loss terms to that of the step, and their values to `values`."""
        if not terms:
            return
        for name, term in terms.items():
            value = term.item()
            if not math.isfinite(value):
                raise UserError(f"The {name} loss became {value} in {self.title()}: lower Settings.lr.")
            values[name] = values.get(name, 0.0) + value
        loss = sum(terms.values(), start=torch.zeros((), device=self.device))  # (), float32
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]  # torch has no types for it

    def replay(self) -> dict[Task, Batch]:
        """A batch of stored samples of each earlier task, augmented like new ones.

        DER++ replays the other part of a task's samples itself, with their logits.
        """
        count = self.settings.replay_per_task - replayed_with_logits(self.settings)
        batches: dict[Task, Batch] = {}
        for task in self.earlier:
            samples = self.buffer.sample(task, count, self.generator)
            batches[task] = collate(samples, self.transform(task), task)
        return batches

    def transform(self, task: Task) -> nn.Module:
        """Strong augmentation, and the weak one in the last epochs."""
        size = self.settings.train_size[task]
        return weak_augmentation(size) if self.weak_now else strong_augmentation(task, size)

    def loader(self) -> DataLoader[Any]:
        """The task's training images in random order; what does not fill the last batch is left out of this epoch.

        Order and augmentation are drawn here, for the whole epoch, so that they are the same for any number of workers.
        """
        count = len(self.dataset)
        # as many numbers whatever the transform needs of them
        order = torch.randperm(count, generator=self.generator)
        seeds = torch.randint(MAX_SEED, (count,), generator=self.generator)
        return DataLoader(
            SeededImages(self.dataset, self.transform(self.task)),
            batch_size=min(self.settings.batch_size[self.task], count),
            sampler=list(zip(order.tolist(), seeds.tolist(), strict=True)),
            drop_last=True,  # the steps of an epoch are counted, and all weigh alike
            collate_fn=partial(stack_batch, task=self.task),
            num_workers=worker_count(self.device),
            generator=torch.Generator(),  # the loader draws a seed for its workers, which nothing uses
        )

    def title(self) -> str:
        """What the progress bar and messages call the running epoch."""
        return f"{TASK_NAMES[self.task]} epoch {len(self.history) + 1}/{self.settings.epochs[self.task]}"

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the stage depends on, as tensors and plain values."""
        return {
            "model": self.model.state_dict(),
            "ema": changed(self.ema.module.state_dict(), self.model.state_dict()),
            "averaged": self.ema.n_averaged,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "buffer": self.buffer.state_dict(),  # the next stage reads it from here
            "rng": {"torch": torch.get_rng_state(), "generator": self.generator.get_state()},
            "history": [record.as_dict() for record in self.history],
            "best": self.best_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where state_dict was taken."""
        self.model.load_state_dict(state["model"])
        self.ema.module.load_state_dict(state["model"] | state["ema"])
        self.ema.n_averaged.copy_(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        self.buffer.load_state_dict(state["buffer"])
        torch.set_rng_state(state["rng"]["torch"])
        self.generator.set_state(state["rng"]["generator"])
        self.history = [EpochRecord.from_dict(values) for values in state["history"]]
        best = state["best"]
        if best:
            best = best | {"model": state["model"] | best["model"]}
        self.best = BestEpoch.from_dict(best) if best else None

    def best_state(self) -> dict[str, Any] | None:
        """The best epoch for state_dict, None where there is none."""
        if self.best is None:
            return None
        values = self.best.as_dict()
        return values | {"model": changed(self.best.weights, self.model.state_dict())}


def named_errors(loader: DataLoader[Any]) -> Iterator[Any]:
    """The batches of a loader. Raises UserError in one sentence where an image cannot be read in a worker."""
    try:
        yield from loader
    except (UserError, RuntimeError) as error:
        text = str(error)
        if "Caught UserError" in text or "Caught PictureError" in text:
            # torch puts the traceback of the worker before its error
            sentence = text.rsplit("Error: ", maxsplit=1)[-1]
            raise UserError(sentence.strip()) from error
        if "exited unexpectedly" in text or "is killed" in text:  # by the system, for want of memory
            raise UserError("A process that decodes images was killed: lower MTL_WORKERS and continue.") from error
        raise


def worker_count(device: str) -> int:
    """How many processes decode and augment images: MTL_WORKERS, else some beside a GPU and none beside a CPU.

    On a CPU the network takes all cores. Windows and macOS would copy the whole set into each process.
    """
    chosen = environment.workers()
    if chosen is not None:  # by the user
        return chosen
    if device == "cpu" or sys.platform != "linux":
        return 0
    cores = (os.cpu_count() or 1) // environment.local_count()  # of each process of torchrun
    return max(0, min(MAX_WORKERS, cores - 1))


def train(trainer: Trainer, after_epoch: Callable[[Trainer], None]) -> None:
    """Run the epochs that are left, calling `after_epoch` after each (evaluation, checkpoint, live curve)."""
    done = len(trainer.history) * trainer.steps
    total = trainer.settings.epochs[trainer.task] * trainer.steps
    with progress(total=total, initial=done, unit="step", mininterval=0.5) as bar:
        while not trainer.finished:
            bar.set_description(trainer.title())
            trainer.epoch(bar)
            after_epoch(trainer)


def changed(weights: dict[str, Tensor], base: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those of some weights that differ from the ones of a base: frozen layers are stored once."""
    different = {}
    for name, value in weights.items():
        other = base[name].to(value.device)
        # 0 and -0 count as equal, and a run that is continued must not differ in a single bit
        is_same = torch.equal(value, other) and torch.equal(value.signbit(), other.signbit())
        if not is_same:
            different[name] = value
    return different


def whole_batch(own: Outputs, count: int) -> Outputs:
    """The outputs of a batch of `count` images, from those of the images that each process has computed."""
    return Outputs(
        processes.gather_rows(own.detection, count),
        processes.gather_rows(own.segmentation, count),
        processes.gather_rows(own.classification, count),
    )


def smallest_batch(settings: Settings) -> int:
    """The images of the smallest batch in a run's stages, new or replayed: so many processes can share it."""
    sizes = [settings.batch_size[task] for task in settings.tasks]
    if settings.replay_per_task and len(settings.tasks) > 1:
        labelled = settings.replay_per_task - replayed_with_logits(settings)
        sizes.append(labelled)
    return min(sizes)


def replayed_tasks(settings: Settings, task: Task, buffer: ReplayBuffer) -> list[Task]:
    """The earlier tasks that are replayed while a task is trained: those with samples in the buffer."""
    if not settings.replay_per_task:  # what is stored need not be replayed
        return []
    return [earlier for earlier in settings.earlier(task) if earlier in buffer.samples]


def replayed_with_logits(settings: Settings) -> int:
    """How many of a task's replayed images in a step DER++ takes for stored logits; the others have their labels."""
    return settings.replay_per_task // 2 if settings.derpp_weight else 0


def freeze_layers(model: UnifiedModel, settings: Settings, task: Task) -> None:
    """Freeze a trunk with ImageNet weights, and with it pooling and fusion where a task's stage asks for it."""
    if not (settings.freeze_trunk and model.has_imagenet_trunk):
        return
    model.backbone.trunk.requires_grad_(False)
    trained = bool(settings.earlier(task)) and not settings.joint  # by an earlier stage
    if settings.freeze_neck[task] and trained:
        model.backbone.pooling.requires_grad_(False)
        model.backbone.fusion.requires_grad_(False)


def learning_rates(model: UnifiedModel, settings: Settings, task: Task) -> tuple[float, float]:
    """The learning rates of the trunk and of all other layers.

    A trunk with ImageNet weights learns more slowly, to keep what it learned; a network without them learns faster.
    """
    lr = settings.lr[task]
    if model.has_imagenet_trunk:
        return lr * settings.trunk_lr_factor, lr
    lr = lr * settings.scratch_lr_factor
    return lr, lr


def parameter_groups(model: UnifiedModel, trunk_lr: float, lr: float) -> list[dict[str, Any]]:
    """An optimiser's two groups: the trunk's parameters that learn, and those of all other layers.

    What is frozen later, after the groups are made, stays in its group.
    """
    # a frozen layer never has a gradient, so an optimiser has no use for it
    trunk = [parameter for parameter in model.backbone.trunk.parameters() if parameter.requires_grad]
    backbone = model.backbone
    new_layers = nn.ModuleList([backbone.pooling, backbone.fusion, backbone.skip, model.head, model.class_skip])
    new = [parameter for parameter in new_layers.parameters() if parameter.requires_grad]
    return [{"params": trunk, "lr": trunk_lr}, {"params": new, "lr": lr}]


def warmup_cosine(step: int, total: int, warmup: float) -> float:
    """Factor of the learning rate: a straight rise over the first `warmup` of all steps, then half a cosine to 0."""
    rise = max(1, round(warmup * total))  # steps
    if step < rise:  # step + 1: with the rate 0 the first step would learn nothing
        return (step + 1) / rise
    progress = (step - rise) / max(1, total - rise)  # 0 to 1
    return 0.5 * (1 + math.cos(math.pi * progress))


def ema_update(decay: float, average: Tensor, new: Tensor, count: Tensor | int) -> Tensor:
    """Exponential moving average whose decay grows with the number of steps averaged so far, up to `decay`."""
    steps = int(count)
    current_decay = min(decay, (1 + steps) / (10 + steps))  # small at first: early weights are soon forgotten
    return average + (new - average) * (1 - current_decay)


def make_losses(dataset: MiniSet, buffer: ReplayBuffer, device: str) -> dict[Task, TaskLoss]:
    """The loss of each task; segmentation's class weights come from the masks at hand, new or stored.

    Where masks are replayed, classes that no stored mask shows are left out of its softmax: a cross-entropy over the
    classes that occur, as L. Caccia et al., "New Insights on Reducing Abrupt Representation Change in Online Continual
    Learning", ICLR 2022, use it for the images of a batch.
    """
    if dataset.task == "seg":
        pixels = pixel_counts(target["mask"] for target in dataset.targets())  # (21,)
        left_out = None
    else:
        pixels = pixel_counts(target["mask"] for _, target in buffer.samples.get("seg", []))
        left_out = (pixels == 0).to(device)  # (21,)
    weights = class_weights(pixels).to(device)
    weighted_loss = partial(segmentation_loss, weights=weights, left_out=left_out)
    return {"seg": weighted_loss, "det": detection_loss, "cls": classification_loss}


def mixed_precision(device: str) -> torch.autocast:
    """Half precision where it is faster: float16 on a GPU, bfloat16 on a CPU with matrix instructions (Intel's AMX).

    Other CPUs train in float32: their gradients of depthwise convolutions are several times slower in bfloat16.
    """
    if device == "cuda":
        return torch.autocast(device, torch.float16)
    has_matrix_unit = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)  # torch has no public question for it
    return torch.autocast(device, torch.bfloat16, enabled=has_matrix_unit())
