"""Remedies against forgetting beside replay: each is an extra loss, weighted by one setting; they can be combined.

A trainer asks every remedy after each forward (`on_batch`) and once a step (`on_step`). None of them changes
the network or the tasks' own losses.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtl_utils import pretrained
from mtl_utils.distances import balanced_mean, divergence, gap, groups, part, plain_mean, salient_mean
from mtl_utils.model import UnifiedModel
from mtl_utils.settings import Settings, UserError
from mtl_utils.transforms import collate, plain

TEACHER_SIZE = 160  # pixels at most that stage 0's network sees: near the size that it has learned at, and cheap


class Remedy:
    """An extra loss against forgetting; 0 where it has nothing to say."""

    def on_batch(self, trainer, task: str, images: Tensor, hidden: Tensor) -> Tensor | float:
        """After a forward of a task's images (B, 3, H, W), new or replayed; hidden features (B, width, h, w)."""
        return 0.0

    def on_step(self, trainer) -> Tensor | float:
        """Once a step, whatever its batches are."""
        return 0.0


class KeepStage0(Remedy):
    """Learning without forgetting of what stage 0 knows (Z. Li and D. Hoiem, ECCV 2016): no picture of it is needed.

    A frozen copy of stage 0's network says of every new image how much it looks like each of stage 0's classes, and the
    same linear classifier must read the same off the features of the network that learns.
    """

    def __init__(self, weight: float, content: dict):
        self.weight = weight
        self.model = UnifiedModel(content["widths"], num_det=0, num_cls=0)
        pretrained.load_stage0(self.model, content)
        self.classifier = pretrained.classifier(content)
        self.model.requires_grad_(False).eval()
        self.classifier.requires_grad_(False)

    def read(self, hidden: Tensor) -> Tensor:
        """Logits (B, C) of stage 0's classes from hidden features (B, width, h, w)."""
        with torch.autocast(hidden.device.type, enabled=False):
            return self.classifier.to(hidden.device)(hidden.float().mean((2, 3)))

    @torch.no_grad()
    def targets(self, images: Tensor) -> Tensor:
        """Logits (B, C) of what stage 0 says of images (B, 3, H, W) in [0, 1]."""
        size = [min(side, TEACHER_SIZE) for side in images.shape[-2:]]
        small = F.interpolate(images, size, mode="bilinear", antialias=True)
        return self.read(self.model.to(images.device).hidden(small))

    def on_batch(self, trainer, task: str, images: Tensor, hidden: Tensor) -> Tensor | float:
        """New images only: replayed ones have been new before."""
        if task != trainer.task:
            return 0.0
        return self.weight * divergence(self.read(hidden), self.targets(images)).mean()


class OldNetwork(Remedy):
    """What the network of the previous stage says of the same images; base of the distillations."""

    def __init__(self, weight: float, model: UnifiedModel):
        self.weight = weight
        self.model = copy.deepcopy(model).requires_grad_(False).eval()

    @torch.no_grad()
    def targets(self, images: Tensor) -> Tensor:
        """The old network's map (B, C, h, w)."""
        return self.model.head[-1](self.model.to(images.device).hidden(images)).float()

    def loss(self, task: str, new: Tensor, old: Tensor) -> Tensor:
        """Distance of an earlier task's channels (B, C, h, w) from the old network's."""
        raise NotImplementedError

    def on_batch(self, trainer, task: str, images: Tensor, hidden: Tensor) -> Tensor | float:
        """Every task learned before the stage counts alike, on every image but those that carry its own labels."""
        asked = [t for t in trainer.settings.earlier(trainer.task) if t != task]
        if not asked:
            return 0.0
        new, old, split = trainer.model.head[-1](hidden), self.targets(images), trainer.model.head.split
        return self.weight * sum(self.loss(t, part(new, split, t), part(old, split, t)) for t in asked)


class LearningWithoutForgetting(OldNetwork):
    """Z. Li and D. Hoiem, "Learning without Forgetting", ECCV 2016: the old network's soft answers on the new images.

    Its classification loss is used for every cell; a detection's box and class count as far as the old network is sure.
    """

    def loss(self, task: str, new: Tensor, old: Tensor) -> Tensor:
        """Soft targets."""
        return plain_mean(task, gap(task, new, old), old)


class HeterogeneityAware(OldNetwork):
    """X. Zhang et al., "HAD", CVPR 2026 (arXiv 2603.26192): distillation for tasks of different output kinds.

    Half of the loss is balanced over the kinds of predictions (each class, object or background counts alike), half is
    taken at salient cells, where the distance itself has its edges. The paper has dense tasks only; here detection's
    cells are the pixels, and classification has no salient half. Groups are averaged plainly where the published code
    takes geometric means and weighs them again.
    """

    def loss(self, task: str, new: Tensor, old: Tensor) -> Tensor:
        """Hard targets, balanced and salient."""
        gaps = gap(task, new, old, hard=True)
        balanced = balanced_mean(gaps, groups(task, old))
        return balanced if task == "cls" else (balanced + salient_mean(gaps)) / 2


class DarkReplay(Remedy):
    """P. Buzzega et al., "Dark Experience for General Continual Learning", NeurIPS 2020 (DER++).

    Beside the labels of some stored images, the raw outputs stored with others are replayed: squared distance between
    what the head says now and what it said when the image was stored, in the channels of the tasks known by then.
    """

    def __init__(self, weight: float):
        self.weight = weight

    def on_step(self, trainer) -> Tensor | float:
        """The distances of all earlier tasks' stored outputs."""
        return self.weight * sum((self.distance(trainer, task) for task in trainer.earlier), start=0.0)

    def distance(self, trainer, task: str) -> Tensor:
        """Mean squared distance for some stored images of one task."""
        samples, stored = trainer.buffer.draw_outputs(task, trainer.settings.draw // 2, trainer.generator)
        images, _ = collate(samples, plain(task, trainer.settings.size[task]), task)
        grid = trainer.model.head[-1](trainer.model.hidden(images.to(trainer.device)))
        split, known = trainer.model.head.split, (*trainer.settings.earlier(task), task)
        old = stored.to(trainer.device)
        return sum(F.mse_loss(part(grid, split, t), part(old, split, t)) for t in known)


class ElasticWeights(Remedy):
    """J. Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks", PNAS 2017 (EWC).

    Weights that mattered to earlier tasks are held by springs whose strength is the diagonal of the Fisher information;
    one anchor and the sum of the Fisher terms of all tasks, as in J. Schwarz et al., "Progress & Compress", ICML 2018.
    """

    def __init__(self, weight: float, model: UnifiedModel, fisher: dict[str, Tensor]):
        self.weight, self.fisher = weight, fisher
        self.anchor = {name: p.detach().clone() for name, p in model.named_parameters()}

    def on_step(self, trainer) -> Tensor | float:
        """The energy of the springs."""
        terms = []
        for name, p in trainer.model.named_parameters():
            if p.requires_grad and name in self.fisher:
                fisher, anchor = self.fisher[name].to(p.device), self.anchor[name].to(p.device)
                terms.append((fisher * (p - anchor).square()).sum())
        return self.weight / 2 * sum(terms)


def fisher_information(model: nn.Module, batches, loss) -> dict[str, Tensor]:
    """Diagonal of the empirical Fisher information: mean squared gradient over batches of one image.

    batches: (images (1, 3, H, W), targets) pairs; loss: of (outputs, targets). Returns float32 tensors by name.
    """
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    count = 0
    for images, targets in batches:
        model.zero_grad(set_to_none=True)
        loss(model(images), targets).backward()
        for name, p in model.named_parameters():
            if p.grad is not None:
                total[name] += p.grad.square()
        count += 1
    model.zero_grad(set_to_none=True)
    return {name: value / max(count, 1) for name, value in total.items()}


def make_remedies(settings: Settings, model: UnifiedModel, task: str, fisher: dict[str, Tensor]) -> list[Remedy]:
    """The remedies that the settings ask for, for a stage that starts from `model`."""
    if settings.der and settings.draw < 2:
        raise UserError("DER++ replays labels and stored outputs by halves: set Settings.draw to 2 or more.")
    path, remedies = pretrained.find_start(settings.widths), []
    if settings.distill and path and pretrained.label(settings.widths) != pretrained.NOTHING:
        content = pretrained.read(path)
        remedies += [KeepStage0(settings.distill, content)] if "classifier" in content else []
    if settings.earlier(task) and not settings.joint:
        remedies += [LearningWithoutForgetting(settings.lwf, model)] if settings.lwf else []
        remedies += [HeterogeneityAware(settings.had, model)] if settings.had else []
        remedies += [DarkReplay(settings.der)] if settings.der else []
        remedies += [ElasticWeights(settings.ewc, model, fisher)] if settings.ewc and fisher else []
    return remedies
