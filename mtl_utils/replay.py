"""The replay buffer: a few exemplars of every task already learned, as they came, and what remedies keep beside them.

Experience replay after A. Chaudhry et al., "On Tiny Episodic Memories in Continual Learning", 2019; by default the
exemplars are chosen so that every class is stored about equally often.
"""

import torch
from torch import Tensor
from torchvision import tv_tensors

from mtl_utils.data import MiniSet, Sample, classes_of
from mtl_utils.detection import mask_objects
from mtl_utils.files import UserError
from mtl_utils.model import UnifiedModel
from mtl_utils.settings import MAX_REPLAY_PER_TASK
from mtl_utils.transforms import collate, eval_transform

TV_TYPES = {"image": tv_tensors.Image, "mask": tv_tensors.Mask}


class ReplayBuffer:
    """At most `capacity` samples a task, uint8 and undistorted; `draw` picks some of one task in constant time each."""

    def __init__(self, capacity: int):
        self.capacity = capacity
        self.samples: dict[str, list[Sample]] = {}
        self.stored_logits: dict[str, Tensor] = {}  # maps (N, C, h, w) float16 of the samples, for DER++
        self.fisher: dict[str, Tensor] = {}  # strength by weight's name, summed over the tasks, for EWC

    def store(
        self,
        dataset: MiniSet,
        generator: torch.Generator,
        selection: str = "balanced",
        features: Tensor | None = None,
    ) -> None:
        """Keep a choice of a task's training set; herding goes by the images' features (N, D)."""
        if self.capacity > 0:
            chosen = select_exemplars(selection, dataset, self.capacity, generator, features)
            self.samples[dataset.task] = [with_objects(*dataset[i], dataset.classes.det) for i in chosen]

    def sample(self, task: str, count: int, generator: torch.Generator) -> list[Sample]:
        """`count` random samples of a task for one training step, without repetition where enough are stored."""
        assert count <= MAX_REPLAY_PER_TASK, (
            f"{count} replayed images of a task in one step; the assignment allows {MAX_REPLAY_PER_TASK}"
        )
        return [self.samples[task][i] for i in self.sample_indices(task, count, generator)]

    def sample_with_logits(self, task: str, count: int, generator: torch.Generator) -> tuple[list[Sample], Tensor]:
        """As `draw`, with the stored maps (count, C, h, w) of the samples."""
        assert count <= MAX_REPLAY_PER_TASK, (
            f"{count} replayed images of a task in one step; the assignment allows {MAX_REPLAY_PER_TASK}"
        )
        picks = self.sample_indices(task, count, generator)
        return [self.samples[task][i] for i in picks], self.stored_logits[task][picks]

    def sample_indices(self, task: str, count: int, generator: torch.Generator) -> list[int]:
        """Random indices of a task's samples, without repetition where enough are stored."""
        stored, picks = len(self.samples[task]), set()
        while len(picks) < min(count, stored):
            picks.add(int(torch.randint(stored, (1,), generator=generator)))
        return sorted(picks)

    def state_dict(self) -> dict:
        """Plain tensors, as they are stored in checkpoints."""
        samples = {task: [pack(*sample) for sample in stored] for task, stored in self.samples.items()}
        return {
            "capacity": self.capacity,
            "samples": samples,
            "stored_logits": self.stored_logits,
            "fisher": self.fisher,
        }

    def load_state_dict(self, state: dict) -> None:
        """The inverse of state_dict."""
        self.capacity = state["capacity"]
        self.samples = {task: [unpack(s) for s in stored] for task, stored in state["samples"].items()}
        self.stored_logits, self.fisher = dict(state["stored_logits"]), dict(state["fisher"])


def select_exemplars(
    selection: str, dataset: MiniSet, count: int, generator: torch.Generator, features: Tensor | None = None
) -> list[int]:
    """`count` indices of a set by "balanced", "random" or "herding" selection. Raises UserError for another word."""
    if selection == "balanced":
        return class_balanced(dataset, count, generator)
    if selection == "random":
        return torch.randperm(len(dataset), generator=generator)[:count].tolist()
    if selection == "herding":
        return herding(features, count)
    raise UserError(f"Settings.exemplar_selection is {selection!r}: choose balanced, random or herding.")


def herding(features: Tensor, count: int) -> list[int]:
    """Indices whose mean feature stays nearest to the mean of all (N, D), one after another.

    M. Welling, "Herding dynamical weights to learn", ICML 2009, as in S.-A. Rebuffi et al., "iCaRL", CVPR 2017.
    """
    features = torch.nn.functional.normalize(features.float(), dim=1)
    mean, total, chosen = features.mean(0), torch.zeros(features.shape[1]), []
    while len(chosen) < min(count, len(features)):
        distance = (mean - (total + features) / (len(chosen) + 1)).norm(dim=1)
        distance[chosen] = float("inf")
        chosen.append(int(distance.argmin()))
        total = total + features[chosen[-1]]
    return chosen


def class_balanced(dataset: MiniSet, count: int, generator: torch.Generator) -> list[int]:
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


@torch.inference_mode()
def collect_head_features(model: UnifiedModel, samples: list[Sample], task: str, size: int, device: str) -> Tensor:
    """Hidden features (N, width, h, w) of samples as evaluation shows them, at `size` pixels."""
    view = eval_transform(task, size)
    batches = ([sample] for sample in samples)
    return torch.cat([model.head_features(collate(b, view, task)[0].to(device)).cpu() for b in batches])
