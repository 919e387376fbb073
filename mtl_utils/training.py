"""Remedies against forgetting beside replay: each is an extra loss, weighted by one setting; they can be combined.

A trainer asks every remedy after each forward (`on_batch`) and once a step (`on_step`). None of them changes
the network or the tasks' own losses.
"""

import math
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from mtl_utils.data import MiniSet
from mtl_utils.files import UserError
from mtl_utils.losses import class_weights, classification_loss, detection_loss, pixel_counts, segmentation_loss
from mtl_utils.model import UnifiedModel
from mtl_utils.replay import ReplayBuffer
from mtl_utils.settings import Settings
from mtl_utils.tasks import TASK_NAMES, TASKS
from mtl_utils.transforms import collate, strong_augmentation, to_device, weak_augmentation


class Remedy:
    """An extra loss against forgetting; 0 where it has nothing to say."""

    def batch_loss(self, trainer, task: str, images: Tensor, hidden: Tensor) -> Tensor | float:
        """After a forward of a task's images (B, 3, H, W), new or replayed; hidden features (B, width, h, w)."""
        return 0.0

    def step_loss(self, trainer) -> Tensor | float:
        """Once a step, whatever its batches are."""
        return 0.0


Batch = tuple[Tensor, list | Tensor]


class Trainer:
    """Trains a model on one task while replaying earlier ones.

    `history` holds a dict for each finished epoch; `best` the averaged weights of the epoch with the lowest training
    loss over all tasks in play, among the last epochs, whose calm augmentation makes their losses comparable. It is
    never chosen on val, since val is what the results are reported on.
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
        self.task, self.dataset, self.buffer = dataset.task, dataset, buffer
        self.settings, self.device, self.remedies = settings, device, remedies
        self.earlier = [t for t in settings.earlier(self.task) if settings.replay_per_task and t in buffer.samples]
        self.model = model.to(device, memory_format=torch.channels_last)
        self.ema = AveragedModel(self.model, avg_fn=partial(ema_update, settings.ema_decay), use_buffers=True)
        seed = 10 * settings.seed + TASKS.index(self.task)
        torch.manual_seed(seed)  # augmentation
        self.generator = torch.Generator().manual_seed(seed)  # order of images, replay
        self.steps = max(1, len(dataset) // settings.batch_size[self.task])
        groups = parameter_groups(model, settings, self.task)
        self.optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay, fused=True)
        total = self.steps * settings.epochs[self.task]
        shape = partial(warmup_cosine, total=total, warmup=settings.warmup_fraction)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, shape)
        self.scaler = torch.amp.GradScaler(enabled=device == "cuda")
        self.losses = make_losses(dataset, buffer, device)
        self.history: list[dict] = []
        self.best: dict = {"loss": math.inf}

    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""
        return len(self.history) >= self.settings.epochs[self.task]

    @property
    def weak_now(self) -> bool:
        """Whether the running epoch is one of the last, without heavy augmentation; at least one is."""
        epochs = self.settings.epochs[self.task]
        return len(self.history) >= epochs - max(1, round(self.settings.weak_augmentation * epochs))

    def epoch(self, bar: tqdm | None = None) -> dict:
        """Train for one pass over the task's images; returns and keeps the epoch's entry of the history."""
        started, sums = time.perf_counter(), dict.fromkeys([*self.earlier, self.task], 0.0)
        calm_now = self.weak_now
        self.model.train()
        for images, targets in self.loader():
            for task, loss in self.step({self.task: (images, targets)} | self.replay()).items():
                sums[task] += loss
            if bar is not None:
                bar.update()
        mean = {task: total / self.steps for task, total in sums.items()}
        entry = {"epoch": len(self.history) + 1, "loss": mean, "lr": self.schedule.get_last_lr()[-1]}
        self.history.append(entry | {"seconds": time.perf_counter() - started})
        if calm_now and sum(mean.values()) < self.best["loss"]:
            weights = {k: v.detach().cpu().clone() for k, v in self.ema.module.state_dict().items()}
            self.best = {"loss": sum(mean.values()), "epoch": len(self.history), "model": weights}
        return self.history[-1]

    def step(self, batches: dict[str, Batch]) -> dict[str, float]:
        """One optimiser step on the sum of the tasks' losses; each task has its own forward at its own size."""
        self.optimizer.zero_grad(set_to_none=True)
        values = {}
        for task, (images, targets) in batches.items():
            images = images.to(self.device)
            with mixed_precision(self.device):
                hidden = self.model.head_features(images)
                outputs = self.model.outputs(hidden)
            weight = 1.0 if task == self.task else self.settings.replay_weight
            targets = to_device(targets, self.device)
            loss = self.losses[task](outputs, targets)
            values[task] = weight * loss.item()
            if task == "seg" and self.settings.boxes_from_masks and self.task != "seg":
                loss = loss + self.losses["det"](outputs, targets)  # the same forward teaches both
            loss = loss + self.remedy_loss("batch_loss", task, images, hidden)
            if not math.isfinite(values[task]):
                raise UserError(f"The {task} loss became {values[task]} in {self.title()}: lower Settings.lr.")
            self.scaler.scale(weight * loss).backward()
        if isinstance(extra := self.remedy_loss("step_loss"), Tensor):
            self.scaler.scale(extra).backward()
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.max_grad_norm)
        if norm.isfinite():  # a rare gradient in half precision is not: it would spoil every weight
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        self.ema.update_parameters(self.model)
        return values

    def remedy_loss(self, when: str, *about) -> Tensor | float:
        """The sum of what the remedies add to the loss, after a batch or once a step (see remedies.Remedy)."""
        with mixed_precision(self.device):
            return sum((getattr(remedy, when)(self, *about) for remedy in self.remedies), start=0.0)

    def replay(self) -> dict[str, Batch]:
        """A batch of stored samples of each earlier task, augmented like new ones; DER++ takes half of them itself."""
        count = self.settings.replay_per_task - (
            self.settings.replay_per_task // 2 if self.settings.derpp_weight else 0
        )
        drawn = {task: self.buffer.sample(task, count, self.generator) for task in self.earlier}
        return {task: collate(samples, self.transform(task), task) for task, samples in drawn.items()}

    def transform(self, task: str) -> nn.Module:
        """Heavy augmentation, and the calm one in the last epochs."""
        return (weak_augmentation if self.weak_now else strong_augmentation)(task, self.settings.train_size[task])

    def loader(self) -> DataLoader:
        """The task's training images in random order; what does not fill the last batch waits for the next epoch."""
        batch = min(self.settings.batch_size[self.task], len(self.dataset))
        join = partial(collate, transform=self.transform(self.task), task=self.task)
        order = {"shuffle": True, "drop_last": True, "generator": self.generator}
        return DataLoader(self.dataset, batch, collate_fn=join, **order)

    def title(self) -> str:
        """What the progress bar and messages call the running epoch."""
        return f"{TASK_NAMES[self.task]} epoch {len(self.history) + 1}/{self.settings.epochs[self.task]}"

    def state_dict(self) -> dict:
        """Everything that the rest of the stage depends on."""
        parts = {name: getattr(self, name).state_dict() for name in STATEFUL}
        chance = {"torch": torch.get_rng_state(), "generator": self.generator.get_state()}
        return parts | {"rng": chance, "history": self.history, "best": self.best}

    def load_state_dict(self, state: dict) -> None:
        """Continue where state_dict was taken."""
        for name in STATEFUL:
            getattr(self, name).load_state_dict(state[name])
        torch.set_rng_state(state["rng"]["torch"])
        self.generator.set_state(state["rng"]["generator"])
        self.history, self.best = state["history"], state["best"]


STATEFUL = ("model", "ema", "optimizer", "schedule", "scaler", "buffer")  # parts of a Trainer with a state of their own


def train(trainer: Trainer, after_epoch: Callable[[Trainer], None]) -> None:
    """Run the epochs that are left, calling `after_epoch` after each (evaluation, checkpoint, live curve)."""
    done, total = len(trainer.history), trainer.settings.epochs[trainer.task]
    with tqdm(total=total * trainer.steps, initial=done * trainer.steps, unit="step", mininterval=0.5) as bar:
        while not trainer.finished:
            bar.set_description(trainer.title())
            trainer.epoch(bar)
            after_epoch(trainer)


def parameter_groups(model: UnifiedModel, settings: Settings, task: str) -> list[dict]:
    """Trunk and all the rest; a trunk with ImageNet weights learns more slowly or rests, one from nothing faster."""
    if model.has_imagenet_trunk and settings.freeze_stem:
        model.backbone.trunk.freeze_early()
    if model.has_imagenet_trunk and settings.freeze_trunk and settings.earlier(task) and not settings.joint:
        model.backbone.trunk.requires_grad_(False)
    trunk = [p for p in model.backbone.trunk.parameters() if p.requires_grad]
    rest = [*model.backbone.pooling.parameters(), *model.backbone.fusion.parameters(), *model.head.parameters()]
    lr = settings.lr[task] * (1.0 if model.has_imagenet_trunk else settings.scratch_lr_factor)
    factor = settings.trunk_lr_factor if model.has_imagenet_trunk else 1.0
    return [{"params": trunk, "lr": lr * factor}, {"params": rest, "lr": lr}]


def warmup_cosine(step: int, total: int, warmup: float) -> float:
    """Factor of the learning rate: a straight rise over the first `warmup` of all steps, then half a cosine to 0."""
    rise = max(1, round(warmup * total))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise)))


def ema_update(decay: float, average: Tensor, new: Tensor, count: Tensor | int) -> Tensor:
    """Exponential moving average whose memory grows with the number of steps, up to `decay`."""
    keep = min(decay, (1 + int(count)) / (10 + int(count)))
    return average + (new - average) * (1 - keep)


def make_losses(dataset: MiniSet, buffer: ReplayBuffer, device: str) -> dict[str, Callable]:
    """The loss of each task; segmentation's class weights come from the masks at hand, new or stored."""
    samples = dataset.samples if dataset.task == "seg" else buffer.samples.get("seg", [])
    weights = class_weights(pixel_counts([target["mask"] for _, target in samples])).to(device)
    seg = partial(segmentation_loss, weights=weights)
    return {"seg": seg, "det": detection_loss, "cls": classification_loss}


def mixed_precision(device: str) -> torch.autocast:
    """Half precision where the machine has instructions for it: float16 on a GPU, bfloat16 on a CPU."""
    if device == "cuda":
        return torch.autocast(device, torch.float16)
    has_bfloat16 = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)  # torch has no public question for it
    return torch.autocast(device, torch.bfloat16, enabled=has_bfloat16())
