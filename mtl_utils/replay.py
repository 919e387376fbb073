"""The replay buffer: a few exemplars of every task already learned, class-balanced, as they came.

Experience replay after A. Chaudhry et al., "On Tiny Episodic Memories in Continual Learning", 2019; exemplars chosen
so that every class is stored about equally often.
"""

import torch
from torch import Tensor
from torchvision import tv_tensors

from mtl_utils.data import MiniSet, Sample, classes_of
from mtl_utils.objects import mask_objects
from mtl_utils.settings import MAX_DRAW

TV_TYPES = {"image": tv_tensors.Image, "mask": tv_tensors.Mask}


class ReplayBuffer:
    """At most `capacity` samples a task, uint8 and undistorted; `draw` picks some of one task in constant time each."""

    def __init__(self, capacity: int):
        self.capacity = capacity
        self.samples: dict[str, list[Sample]] = {}

    def fill(self, dataset: MiniSet, generator: torch.Generator) -> None:
        """Keep a class-balanced choice of a task's training set."""
        if self.capacity > 0:
            chosen = balanced_choice(dataset, self.capacity, generator)
            self.samples[dataset.task] = [with_objects(*dataset[i], dataset.classes.det) for i in chosen]

    def draw(self, task: str, count: int, generator: torch.Generator) -> list[Sample]:
        """`count` random samples of a task for one training step, without repetition where enough are stored."""
        assert count <= MAX_DRAW, f"{count} replayed images of a task in one step; the assignment allows {MAX_DRAW}"
        stored = self.samples[task]
        picks: set[int] = set()
        while len(picks) < min(count, len(stored)):
            picks.add(int(torch.randint(len(stored), (1,), generator=generator)))
        return [stored[i] for i in sorted(picks)]

    def state_dict(self) -> dict:
        """Plain tensors, as they are stored in checkpoints."""
        samples = {task: [pack(*sample) for sample in stored] for task, stored in self.samples.items()}
        return {"capacity": self.capacity, "samples": samples}

    def load_state_dict(self, state: dict) -> None:
        """The inverse of state_dict."""
        self.capacity = state["capacity"]
        self.samples = {task: [unpack(s) for s in stored] for task, stored in state["samples"].items()}


def balanced_choice(dataset: MiniSet, count: int, generator: torch.Generator) -> list[int]:
    """`count` indices of a set: again and again, an image of the class that is chosen least so far.

    Images come in random order; classes without an image left are passed over.
    """
    count = min(count, len(dataset))
    classes = [set(classes_of(dataset.task, target)) or {-1} for _, target in dataset.samples]
    left = torch.randperm(len(dataset), generator=generator).tolist()
    seen = {c: 0 for members in classes for c in members}
    chosen = []
    while len(chosen) < count:
        rarest = min({c for i in left for c in classes[i]}, key=lambda c: (seen[c], c))
        pick = next(i for i in left if rarest in classes[i])
        left.remove(pick)
        chosen.append(pick)
        for c in classes[pick]:
            seen[c] += 1
    return chosen


def with_objects(image: tv_tensors.Image, target: dict[str, Tensor], det_classes: tuple[str, ...]) -> Sample:
    """A sample whose mask, if it has one, also gives boxes for detection."""
    return image, target | mask_objects(target["mask"], det_classes) if "mask" in target else target


def pack(image: tv_tensors.Image, target: dict[str, Tensor]) -> dict[str, Tensor]:
    """A sample as plain tensors."""
    return {"image": image.as_subclass(Tensor)} | {k: v.as_subclass(Tensor) for k, v in target.items()}


def unpack(packed: dict[str, Tensor]) -> Sample:
    """The inverse of pack."""
    sample = {k: TV_TYPES[k](v) if k in TV_TYPES else v for k, v in packed.items()}
    if "boxes" in sample:
        size = tuple(sample["image"].shape[-2:])
        sample["boxes"] = tv_tensors.BoundingBoxes(sample["boxes"], format="XYXY", canvas_size=size)
    return sample.pop("image"), sample
