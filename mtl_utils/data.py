"""The three mini sets as torch datasets, of any number of images, with their targets as tv_tensors.

A sample is (image, target): image is a tv_tensors.Image, (3, H, W) uint8 RGB in its own size, or in a whole part of it
where training needs no more pixels; target is a dict:
    seg: {"mask": Mask (H, W) uint8 of 0..20 and 255}
    det: {"boxes": BoundingBoxes (N, 4) XYXY float32 in pixels, "labels": (N,) int64, "crowd": (N,) bool}
    cls: {"label": () int64}
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, overload

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.ops import box_convert
from torchvision.transforms.v2 import functional as TF

from mtl_utils import layout, pictures
from mtl_utils.coco import Box, CocoSet, Key, Problem, categories_of, plain_name, read_set, without
from mtl_utils.files import UserError
from mtl_utils.progress import progress
from mtl_utils.tasks import COCO_CLASSES, FOLDERS, IGNORE, IMAGENETTE_NAMES, Classes, Task

KEPT_BYTES = 256 << 20  # of decoded samples that a set keeps in memory: a mini set is not decoded again in every epoch

Target = dict[str, Tensor]
Sample = tuple[tv_tensors.Image, Target]


def find_classes(root: Path, split: str = "train") -> Classes:
    """The class lists that the data itself gives: COCO's category table, sorted by id, and the folder names.

    A set that is not there has the classes of the mini set.
    """
    # a run on some of the sets builds the whole network all the same
    names = tuple(IMAGENETTE_NAMES)
    if layout.has_set(root, "cls"):
        # WordNet ids where they are known, so that a checkpoint fits the data whichever names its folders have
        names = tuple(layout.folder_of_class(root, split))
    categories: list[tuple[Key, str]] = [(key, name) for name, key in COCO_CLASSES.items()]
    if layout.has_set(root, "det"):
        categories = categories_of(root, split)
    det_ids, det_names = zip(*categories, strict=True)
    return Classes(det=det_names, det_ids=det_ids, cls=names)


def read_image(path: Path, size: pictures.Size | None = None) -> tv_tensors.Image:
    """Decode a picture to (3, H, W) uint8 RGB, upright; `size` (width, height) is what its labels say of it.

    It is left unturned where `size` fits the stored pixels alone. Raises UserError when it is missing, truncated, too
    large or no picture.
    """
    photo = pictures.read_photo(path, size)
    pixels = TF.pil_to_tensor(photo)  # (3, H, W) uint8
    return tv_tensors.Image(pixels)


def read_mask(path: Path) -> tv_tensors.Mask:
    """Read a VOC mask, (H, W) uint8 of class indices, upright. Raises UserError on anything but classes and 255."""
    values = pictures.read_mask(path)
    mask = torch.from_numpy(values)  # (H, W) uint8
    return tv_tensors.Mask(mask)


class BoxRow(NamedTuple):
    """One object of a COCO JSON."""

    xywh: Box
    label: int  # class index
    crowd: bool  # a group that is outlined as one: neither object nor background


class Entry(NamedTuple):
    """One image of a set that is not decoded yet."""

    key: Key  # COCO's image id, else the name
    path: Path
    label: Path | list[BoxRow] | int | None  # the mask's path (seg), the objects (det), the class index (cls)
    size: pictures.Size | None = None  # width and height that the labels were drawn for, where a file says so


class Samples(Sequence[Sample]):
    """The samples of some images: the first ones are kept in memory, the others are decoded when they are asked for."""

    def __init__(self, entries: Sequence[Entry], kept: Sequence[Sample], longest: int | None):
        self.entries = entries
        self.kept = kept  # of the first entries
        self.longest = longest  # see read_sample

    def __len__(self) -> int:
        return len(self.entries)

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...

    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            places = range(*index.indices(len(self)))
            return [self[place] for place in places]
        place = range(len(self))[index]  # IndexError ends a loop over all; -1 is the last
        if place < len(self.kept):
            return self.kept[place]
        return read_sample(self.entries[place], self.longest)


class MiniSet(Dataset[Sample]):
    """One split of one task; `ids` names each image (COCO's image id, else the file's name).

    skip_broken: leave out images that are broken or wrongly labelled; `left_out` has a sentence for each.
    longest: pixels of an image's longer side that are enough (see read_sample); None: all that it has.
    """

    def __init__(
        self,
        task: Task,
        root: Path,
        split: str,
        classes: Classes,
        skip_broken: bool = False,
        longest: int | None = None,
    ):
        self.task = task
        self.split = split
        self.root = root
        self.classes = classes
        self.skip_broken = skip_broken
        self.left_out: list[str] = []
        entries = self.entries()
        if not entries:
            raise UserError(f"{self.place} has no {split} images: run `python -m mtl_utils data check`.")
        self.samples: Sequence[Sample] = self.read(entries, longest)
        if not self.samples:
            raise UserError(f"{self.place}: every image was left out, the first because {self.left_out[0]}")
        if task == "det" and self.left_out:
            # evaluation must not look for objects that nobody was shown
            broken = {photo.key for photo in self.coco.photos if photo.key is not None} - set(self.ids)
            self.coco = without(self.coco, broken)

    def read(self, entries: Sequence[Entry], longest: int | None) -> Samples:
        """Decode as many images as are kept; all of them where broken ones are left out.

        Raises UserError where one is broken, unless such images are left out.
        """
        kept: list[Sample] = []
        sound: list[Entry] = []
        room = KEPT_BYTES
        # a bar only where reading takes longer than two seconds
        title = f"reading {FOLDERS[self.task]}/{self.split}"
        for entry in progress(entries, desc=title, unit="image", leave=False, delay=2):
            if room > 0 or self.skip_broken:
                try:
                    if self.skip_broken and longest is not None:  # with fewer pixels some damage is not seen
                        pictures.decode(entry.path)
                    sample = read_sample(entry, longest)
                except UserError as error:
                    if not self.skip_broken:
                        raise
                    self.left_out.append(str(error))
                    continue
                if room > 0:
                    kept.append(sample)
                    room -= sample_bytes(sample)
            sound.append(entry)
        # one list each, an image each
        self.ids: list[Key] = [entry.key for entry in sound]
        self.paths: list[Path] = [entry.path for entry in sound]
        return Samples(sound, kept, longest)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]

    def targets(self) -> Iterator[Target]:
        """The target of every image in turn; a photograph is decoded for it only where it is reduced."""
        for place in range(len(self.samples)):
            yield self.target(place)

    def target(self, place: int) -> Target:
        """The target of one image."""
        samples = self.samples
        if isinstance(samples, Samples) and place >= len(samples.kept):
            entry = samples.entries[place]
            # of a reduced photograph the target is reduced with it
            if not pictures.is_reduced(entry.path, samples.longest):
                return read_target(entry)
        _, target = samples[place]
        return target

    def entries(self) -> list[Entry]:
        """Every image of the set with what is known about it, before anything is decoded."""
        # first what would be left out without a word
        if self.task == "seg":
            doubtful = self.refuse_or_note(layout.voc_problems(self.root, self.split))
            return without_files(seg_entries(self.root, self.split), doubtful)
        if self.task == "det":
            if self.skip_broken:
                self.leave_out_problems()
            return det_entries(self.coco, self.classes)
        doubtful = self.refuse_or_note(layout.cls_problems(self.root, self.split))
        return without_files(cls_entries(self.root, self.split, self.classes), doubtful)

    def refuse_or_note(self, found: Sequence[layout.FileProblem]) -> set[Path | None]:
        """Raise UserError for doubtful files and folders, or note and return them where such are left out."""
        problems = [Problem(each.path, each.text, each.remedy) for each in found]
        if not self.skip_broken:
            raise_first(problems)
        self.left_out += map(problem_text, problems)
        return {each.path for each in found} | {each.twin for each in found}

    def leave_out_problems(self) -> None:
        """Take the images of a detection set out that its JSON has a problem with."""
        single = []
        for problem in self.coco.problems:
            if problem.photo is None:  # nothing could be read rightly beside it
                raise UserError(problem_text(problem, " (and this concerns more than one image to leave out)"))
            single.append(problem)
        self.left_out += [problem_text(problem) for problem in single]
        self.coco = without(self.coco, {problem.photo for problem in single if problem.photo is not None})

    @cached_property
    def coco(self) -> CocoSet:
        """A detection set's COCO JSON, read once; evaluation needs it too."""
        content = layout.read_coco(layout.coco_json(self.root, self.split))
        return read_set(self.root, self.split, content)

    @property
    def place(self) -> Path:
        """The folder of the photographs, for messages."""
        return layout.split_folder(self.root, self.task, self.split)

    @property
    def has_truth(self) -> bool:
        """Whether anything is labelled: a pixel that is not IGNORE, an object that is no crowd."""
        if self.task == "seg":
            return any(bool((target["mask"] != IGNORE).any()) for target in self.targets())
        if self.task == "det":
            return any(not bool(target["crowd"].all()) for target in self.targets())
        return len(self.samples) > 0  # every photograph lies in a class folder

    @property
    def nbytes(self) -> int:
        """Bytes that images and targets would take if all were in memory."""
        return sum(sample_bytes(sample) for sample in self.samples)


def sample_bytes(sample: Sample) -> int:
    """Bytes of memory that an image and its target take."""
    image, target = sample
    # the pixels are nearly all of it
    total: int = image.nbytes
    for value in target.values():
        total += value.nbytes
    return total


def seg_entries(root: Path, split: str) -> list[Entry]:
    """Every VOC image with its mask, None where it has none."""
    pairs = layout.voc_pairs(root, split)
    return [Entry(image.stem, image, mask) for image, mask in pairs]


def det_entries(coco: CocoSet, classes: Classes) -> list[Entry]:
    """Every COCO image with its objects, class indices instead of category ids, in the order of the JSON.

    Raises UserError where a fault could change a metric, and where an object has a class that the model does not have.
    """
    raise_first(coco.problems)  # what `data check` would list
    labels = class_labels(coco, classes)
    # an image without objects is an image all the same
    objects: dict[Key, list[BoxRow]] = {photo.key: [] for photo in coco.photos if photo.key is not None}
    for found in coco.objects:
        objects[found.photo].append(BoxRow(found.box, labels[found.category], found.crowd))
    entries = []
    for photo in coco.photos:
        assert photo.key is not None and photo.file is not None, "else there were a problem"
        entries.append(Entry(photo.key, photo.file, objects[photo.key], photo.size))
    return entries


def without_files(entries: list[Entry], doubtful: set[Path | None]) -> list[Entry]:
    """The images of which neither the photograph nor the mask is among some files."""
    kept = []
    for entry in entries:
        used = {entry.path}  # files
        if isinstance(entry.label, Path):  # of a mask
            used.add(entry.label)
        if used.isdisjoint(doubtful):
            kept.append(entry)
    return kept


def raise_first(problems: Sequence[Problem]) -> None:
    """Raise UserError for the first of some problems, with the number of the others."""
    if not problems:
        return
    # one sentence: the first is enough to act on
    others = f" ({len(problems) - 1} more faults: `data check` lists all)" if len(problems) > 1 else ""
    raise UserError(problem_text(problems[0], others))


def problem_text(problem: Problem, others: str = "") -> str:
    """A problem as one sentence."""
    return f"{problem.path}: {problem.text}{others}: {problem.remedy}."


def class_labels(coco: CocoSet, classes: Classes) -> dict[str, int]:
    """The model's class index of every category that some object has. Classes are told by their names, not by ids.

    Raises UserError for a category that the model was not trained for.
    """
    # ids differ from tool to tool, names do not
    index_of = {plain_name(name): index for index, name in enumerate(classes.det)}
    labels = {}
    for name in coco.category_ids:
        if plain_name(name) not in index_of:
            known = ", ".join(classes.det)
            raise UserError(
                f"{coco.path} has objects of the class {name!r}, and the model was trained for {known}: remove them."
            )
        labels[name] = index_of[plain_name(name)]
    return labels


def cls_entries(root: Path, split: str, classes: Classes) -> list[Entry]:
    """Every Imagenette image with its class index. Raises UserError for a class the model does not have."""
    # a checkpoint may hold either kind of name, as a folder may
    known = [layout.class_name(name) for name in classes.cls]
    entries = []
    folders = layout.folder_of_class(root, split)
    for name, folder in folders.items():
        if name not in known:
            raise UserError(f"{folder} is a class the model was not trained for: its classes are {classes.cls}.")
        label = known.index(name)  # of training's list, whatever folders are here
        for path in layout.class_images(folder):
            key = f"{folder.name}/{path.stem}"  # a stem alone may stand in two folders
            entries.append(Entry(key, path, label))
    return entries


def read_sample(entry: Entry, longest: int | None = None) -> Sample:
    """Decode one image and make its target; where its longer side is twice `longest` or more, with fewer pixels.

    Raises UserError where it is broken or has no label.
    """
    if entry.label is None:
        raise UserError(f"{entry.path} has no mask beside it: fetch NAME.png or take the image out.")
    if isinstance(entry.label, Path):
        # read together, since the mask says which way up the photograph was labelled
        photo, values = pictures.read_pair(entry.path, entry.label, longest)
        target: Target = {"mask": tv_tensors.Mask(torch.from_numpy(values))}
    else:
        photo, whole = pictures.read_reduced(entry.path, entry.size, longest)
        check_size(entry, whole)
        target = target_in(entry, whole)
    image = tv_tensors.Image(TF.pil_to_tensor(photo))  # (3, H, W) uint8
    return image, fit_target(target, image)


def read_target(entry: Entry) -> Target:
    """The target of one image, in the size of the whole photograph. Raises UserError where its mask is broken."""
    if isinstance(entry.label, Path):
        return {"mask": read_mask(entry.label)}
    # boxes are cut off at the photograph's sides
    size = entry.size or pictures.header_size(entry.path)
    if size is None or entry.label is None:  # the reader of the whole sample names what is wrong
        _, target = read_sample(entry)
        return target
    return target_in(entry, size)


def target_in(entry: Entry, size: pictures.Size) -> Target:
    """The target of a photograph of a width and height: its objects (det), or its class (cls)."""
    if isinstance(entry.label, list):  # of objects
        width, height = size
        return det_target((height, width), entry.label)
    return {"label": torch.tensor(entry.label)}


def fit_target(target: Target, image: tv_tensors.Image) -> Target:
    """A target of the whole photograph for an image that may have fewer pixels."""
    size = list(image.shape[-2:])
    fitted = {}  # labels and flags stay as they are
    for name, value in target.items():
        if isinstance(value, (tv_tensors.Mask, tv_tensors.BoundingBoxes)):
            value = TF.resize(value, size)  # the same value where the size is
        fitted[name] = value
    return fitted


def check_size(entry: Entry, size: pictures.Size) -> None:
    """Raise UserError where a photograph has another size than the file of its labels says."""
    # boxes of another size would score nearly 0 without a word
    if entry.size not in (None, size):
        width, height = size
        sizes = f"{width} x {height} pixels, and its labels are for {entry.size}"
        raise UserError(f"{entry.path} has {sizes}: get the photograph that was labelled, or label it again.")


def det_target(shape: tuple[int, int], objects: list[BoxRow]) -> Target:
    """The target of an image of `shape` (height, width).

    Boxes are clipped to the image and dropped where less than a pixel is left.
    """
    xywh = [row.xywh for row in objects]
    rows = torch.tensor(xywh, dtype=torch.float32).reshape(-1, 4)  # (N, 4) XYWH, N may be 0
    corners = box_convert(rows, "xywh", "xyxy")
    boxes = tv_tensors.BoundingBoxes(corners, format="XYXY", canvas_size=shape)
    boxes = TF.clamp_bounding_boxes(boxes)  # COCO's coordinates are rounded and may reach outside
    left, top, right, bottom = boxes.unbind(dim=1)
    kept = (right - left >= 1) & (bottom - top >= 1)  # (N,) bool
    boxes = tv_tensors.wrap(boxes[kept], like=boxes)  # indexing alone would give a plain tensor
    labels = torch.tensor([row.label for row in objects], dtype=torch.int64)
    crowd = torch.tensor([row.crowd for row in objects], dtype=torch.bool)
    return {"boxes": boxes, "labels": labels[kept], "crowd": crowd[kept]}


def classes_of(task: Task, target: Target) -> list[int]:
    """The class indices of one target: present ones without background (seg), one a box (det), the label (cls)."""
    if task == "seg":
        present = target["mask"].unique().tolist()  # type: ignore[no-untyped-call]
        return [index for index in present if index not in (0, IGNORE)]  # 0: background
    if task == "det":
        labels: list[int] = target["labels"].tolist()
        return labels
    return [int(target["label"])]
