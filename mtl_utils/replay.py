"""The replay buffer: a few exemplars of every task already learned, undistorted, and what remedies keep beside them.

Experience replay after A. Chaudhry et al., "On Tiny Episodic Memories in Continual Learning", 2019; by default the
exemplars are chosen so that every class is stored about equally often.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import PIL.Image
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as TF

from mtl_utils.data import KEPT_BYTES, MiniSet, Sample, Target, classes_of, sample_bytes
from mtl_utils.detection import mask_objects
from mtl_utils.files import UserError
from mtl_utils.model import UnifiedModel
from mtl_utils.settings import MAX_REPLAY_PER_TASK
from mtl_utils.tasks import Task
from mtl_utils.transforms import plain_target, to_batch

JPEG = (".jpg", ".jpeg")
NO_CLASS = -1  # stands for the classes of an image without objects, so that such images are stored as well


class Exemplars(Sequence[Sample]):
    """Stored samples of one task, encoded as image files are and decoded when they are asked for.

    The first ones are kept decoded as well, as far as KEPT_BYTES go, so that a small buffer is decoded once.
    """

    def __init__(self, packed: list[Target]):
        self.packed = packed  # see pack
        self.decoded: dict[int, Sample] = {}  # by place
        self.room = KEPT_BYTES  # that is left

    def __len__(self) -> int:
        return len(self.packed)

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> "Exemplars": ...

    def __getitem__(self, index: int | slice) -> "Sample | Exemplars":
        if isinstance(index, slice):
            return Exemplars(self.packed[index])
        place = range(len(self))[index]  # IndexError ends a loop over all
        if place in self.decoded:
            return self.decoded[place]
        sample = unpack(self.packed[place])
        # without a limit, thousands of stored images would fill the memory
        if self.room > 0:
            self.decoded[place] = sample
            self.room -= sample_bytes(sample)
        return sample

    def chosen(self, places: Sequence[int]) -> "Exemplars":
        """Some of the samples, in this order."""
        return Exemplars([self.packed[place] for place in places])


class ReplayBuffer:
    """At most `capacity` samples a task, undistorted, so that each replay can augment them anew."""

    def __init__(self, capacity: int):
        self.capacity = capacity
        self.samples: dict[Task, Exemplars] = {}
        self.stored_logits: dict[Task, Tensor] = {}  # maps (N, C, h, w) float16 of the samples, for DER++
        self.fisher: dict[str, Tensor] = {}  # Fisher information by parameter name, summed over the tasks, for EWC

    def store(
        self,
        dataset: MiniSet,
        generator: torch.Generator,
        selection: str = "balanced",
        features: Tensor | None = None,
    ) -> None:
        """Keep exemplars of a task's training set; herding needs the images' features (N, D)."""
        if self.capacity <= 0:
            return
        chosen = select_exemplars(selection, dataset, self.capacity, generator, features)
        packed = []
        for index in chosen:
            image, target = dataset[index]
            # boxes are found once, not at every replay; masks and boxes then move together through augmentation
            target = with_objects(target, dataset.classes.det)
            packed.append(pack(image, target, dataset.paths[index]))  # small, however many there are
        self.samples[dataset.task] = Exemplars(packed)

    def sample(self, task: Task, count: int, generator: torch.Generator) -> list[Sample]:
        """`count` different random samples of a task for one training step; all of them where fewer are stored."""
        indices = self.sample_indices(task, count, generator)
        return [self.samples[task][index] for index in indices]

    def sample_with_logits(self, task: Task, count: int, generator: torch.Generator) -> tuple[list[Sample], Tensor]:
        """As `sample`, with the stored logits of the n samples, (n, C, h, w) float16."""
        indices = self.sample_indices(task, count, generator)
        samples = [self.samples[task][index] for index in indices]
        return samples, self.stored_logits[task][indices]  # row i belongs to sample i of the task

    def sample_indices(self, task: Task, count: int, generator: torch.Generator) -> list[int]:
        """Random indices of a task's samples for one training step, sorted; all where no more than `count` are stored.

        Raises AssertionError for more samples than the assignment allows.
        """
        assert count <= MAX_REPLAY_PER_TASK, (
            f"{count} replayed images of a task in one step; the assignment allows {MAX_REPLAY_PER_TASK}"
        )
        stored = len(self.samples[task])
        indices: set[int] = set()
        while len(indices) < min(count, stored):  # an index that comes twice counts once
            index = torch.randint(stored, (1,), generator=generator)
            indices.add(int(index))
        return sorted(indices)  # a set has no order of its own, and the order decides which augmentation an image gets

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors, as they are stored in checkpoints."""
        return {
            "capacity": self.capacity,
            "exemplars": {task: exemplars.packed for task, exemplars in self.samples.items()},
            "stored_logits": self.stored_logits,
            "fisher": self.fisher,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of state_dict."""
        self.capacity = state["capacity"]
        self.samples = {task: Exemplars(packed) for task, packed in state["exemplars"].items()}
        self.stored_logits = dict(state["stored_logits"])  # copies: the buffer adds to both
        self.fisher = dict(state["fisher"])


def select_exemplars(
    selection: str, dataset: MiniSet, count: int, generator: torch.Generator, features: Tensor | None = None
) -> list[int]:
    """`count` indices of a set by "balanced", "random" or "herding" selection. Raises UserError for another word."""
    if selection == "random":
        return shuffled(len(dataset), generator)[:count]
    members = class_members(dataset, shuffled(len(dataset), generator))
    if selection == "balanced":
        return class_balanced(members, count)
    if selection == "herding":
        assert features is not None, "herding needs features"
        rankings = {}  # the same images, the most typical ones of each class first
        for class_index, indices in members.items():
            order = herding(features[indices])
            rankings[class_index] = [indices[place] for place in order]
        return class_balanced(rankings, count)
    raise UserError(f"Settings.exemplar_selection is {selection!r}: choose balanced, random or herding.")


def shuffled(count: int, generator: torch.Generator) -> list[int]:
    """The indices 0 to count - 1 in random order."""
    indices: list[int] = torch.randperm(count, generator=generator).tolist()
    return indices


def herding(features: Tensor) -> list[int]:
    """All indices of one class's features (N, D), so ordered that every beginning's mean is near the mean of all.

    M. Welling, "Herding dynamical weights to learn", ICML 2009, as in S.-A. Rebuffi et al., "iCaRL", CVPR 2017.
    """
    features = F.normalize(features.float(), dim=1)  # each image counts alike, as in iCaRL
    mean = features.mean(0)  # (D,)
    total = torch.zeros_like(mean)  # of the features chosen so far
    chosen: list[int] = []
    while len(chosen) < len(features):
        means = (total + features) / (len(chosen) + 1)  # (N, D): the mean if this image were chosen next
        distance = (mean - means).norm(dim=1)
        distance[chosen] = float("inf")  # no image is chosen twice
        nearest = int(distance.argmin())
        chosen.append(nearest)
        total = total + features[nearest]
    return chosen


def class_members(dataset: MiniSet, order: list[int]) -> dict[int, list[int]]:
    """The images of each class, in the given order: {class: indices}. An image with several classes is in several."""
    members: dict[int, list[int]] = {}  # by class
    for index in order:
        for class_index in image_classes(dataset.task, dataset.target(index)):
            members.setdefault(class_index, []).append(index)
    return members


def class_balanced(rankings: dict[int, list[int]], count: int) -> list[int]:
    """`count` indices of a set: again and again, an image of the class that is chosen least so far.

    Of its images it is the one that shows the most classes that are chosen equally seldom: ten images can so show more
    than ten classes. rankings: the images of each class; of equals the first is taken. Classes without an image left
    are passed over.
    """
    left = {class_index: list(ranking) for class_index, ranking in rankings.items()}
    shown = classes_by_image(rankings)
    times_chosen = dict.fromkeys(sorted(rankings), 0)  # sorted: of equally rare classes the first is taken
    chosen: list[int] = []
    while len(chosen) < count:
        available = [class_index for class_index in times_chosen if left[class_index]]
        if not available:
            break  # the set has fewer images
        rarest = min(available, key=times_chosen.__getitem__)
        # a class that is now no rarer than this one would be next: one image may serve both
        wanted = {class_index for class_index in available if times_chosen[class_index] == times_chosen[rarest]}
        covered = [len(shown[image] & wanted) for image in left[rarest]]
        # the first of equals: the images of a class come in random order, or the most typical one first
        pick = left[rarest][covered.index(max(covered))]
        chosen.append(pick)
        # of an image with several classes all count
        for class_index in shown[pick]:
            left[class_index].remove(pick)
            times_chosen[class_index] += 1
    return chosen


def classes_by_image(rankings: dict[int, list[int]]) -> dict[int, set[int]]:
    """The classes of each image, from the images of each class."""
    shown: dict[int, set[int]] = {}
    for class_index, images in rankings.items():
        for image in images:
            shown.setdefault(image, set()).add(class_index)
    return shown


def image_classes(task: Task, target: Target) -> set[int]:
    """The classes that an image shows, NO_CLASS if there is none."""
    return set(classes_of(task, target)) or {NO_CLASS}


def with_objects(target: Target, det_classes: tuple[str, ...]) -> Target:
    """A target that, where it has a mask, also has boxes of the mask's objects for detection."""
    if "mask" not in target:
        return target
    return target | mask_objects(target["mask"], det_classes)


def pack(image: tv_tensors.Image, target: Target, path: Path | None = None) -> Target:
    """A sample as plain tensors: picture and mask as the bytes of image files, (N,) uint8, all else as it is.

    The picture's own file is taken where it holds the same pixels. Else it is encoded anew: as JPEG where its file is
    one, so that a photograph that was reduced stays small, and else without loss.
    """
    packed = plain_target(target)  # checkpoints are read with weights_only=True, which knows no tv_tensors
    packed["picture"] = encode_picture(image, path)
    if "mask" in packed:
        # a mask of large areas takes a hundredth of its pixels
        mask = TF.to_pil_image(packed["mask"][None])
        packed["mask"] = encode(mask, "PNG")
    return packed


def unpack(packed: Target) -> Sample:
    """The inverse of pack: the types and sizes by which transforms tell image, mask and boxes apart."""
    target = dict(packed)  # a copy, since the picture is taken out of it
    image = tv_tensors.Image(decode(target.pop("picture"), "RGB"))
    if "mask" in target:
        mask = decode(target["mask"], "L")  # (1, H, W)
        target["mask"] = tv_tensors.Mask(mask[0])
    if "boxes" in target:
        size = tuple(image.shape[-2:])
        target["boxes"] = tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=size)
    return image, target


def encode_picture(image: tv_tensors.Image, path: Path | None) -> Tensor:
    """The bytes (N,) uint8 of a file for an image, (3, H, W) uint8; its own file's where these give it exactly."""
    is_jpeg = path is not None and path.suffix.lower() in JPEG
    if path is not None and is_jpeg:
        own = byte_tensor(path.read_bytes())
        # not so where it was turned or reduced
        if torch.equal(decode(own, "RGB"), image.as_subclass(Tensor)):
            return own
    picture = TF.to_pil_image(image)
    return encode(picture, "JPEG", quality=95, subsampling=0) if is_jpeg else encode(picture, "PNG")


def encode(picture: PIL.Image.Image, kind: str, **options: int) -> Tensor:
    """The bytes (N,) uint8 of a file of this kind, "PNG" or "JPEG"."""
    file = io.BytesIO()
    picture.save(file, kind, **options)  # the same bytes every time
    return byte_tensor(file.getvalue())


def decode(data: Tensor, mode: str) -> Tensor:
    """The pixels (C, H, W) uint8 of the bytes of an image file, in Pillow's mode "RGB" or "L"."""
    picture = PIL.Image.open(io.BytesIO(data.numpy().tobytes()))
    pixels: Tensor = TF.pil_to_tensor(picture.convert(mode))
    return pixels


def byte_tensor(data: bytes) -> Tensor:
    """Bytes as a tensor (N,) uint8, as checkpoints hold them."""
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


@torch.inference_mode()
def collect_head_features(
    model: UnifiedModel, samples: Sequence[Sample], size: int, device: str | torch.device
) -> tuple[Tensor, Tensor]:
    """Head features (N, input + head, h, w) on the CPU of letterboxed samples, and the images' contents (N, 4).

    One image at a time, so that large sets need no more memory on the device.
    """
    features, contents = [], []
    for image, _ in samples:
        batch, content = to_batch([image], size)
        features.append(model.head_features(batch.to(device), content.to(device)).cpu())
        contents.append(content)
    return torch.cat(features), torch.cat(contents)
