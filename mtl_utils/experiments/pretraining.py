"""Stage 0, optional: trains the network up to the head's last layer by classifying ImageNet pictures.

Public weights exist for the trunk alone; pyramid pooling, feature fusion and the head would otherwise start at random
on 240 photographs. A linear classifier reads the mean over the cells of the head's features. It is kept with the
weights: a remedy holds the later stages to what it predicts (remedies/stage0.py).
A trunk with ImageNet weights is frozen in the first epoch, so that the new layers do not distort it (A. Kumar et al.,
"Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution", ICLR 2022).
"""

import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple
from zipfile import BadZipFile, ZipFile

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as TF
from tqdm.auto import tqdm

from mtl_utils import checkpoint, files
from mtl_utils.data import BROKEN, Sample
from mtl_utils.files import UserError
from mtl_utils.losses import SMOOTHING
from mtl_utils.model import LAST, UnifiedModel, fold_batchnorm, mean_over_cells, place_model
from mtl_utils.run import pick_device
from mtl_utils.training import mixed_precision, parameter_groups, warmup_cosine
from mtl_utils.transforms import collate, eval_transform, strong_augmentation
from mtl_utils.weights import find_starting_weights, load_starting_weights

PICTURES = (".jpg", ".jpeg", ".png", ".webp")  # endings of the files that count
HELD_OUT = 20  # every 20th picture is not trained on but measured
SIZE = 128  # input pixels: the pictures are small, and so are the objects of the stages to come
BATCH = 64
WORKERS = 8  # processes that decode pictures for a GPU
LR = 1e-3  # AdamW's, for the layers that start at random
TRUNK_LR_FACTOR = 0.1  # fraction of it for a trunk with ImageNet weights
WEIGHT_DECAY = 0.05
WARMUP_FRACTION = 0.05  # fraction of all steps in which the learning rate rises


# ---- the pictures


class Entry(NamedTuple):
    """One picture that is not decoded yet."""

    name: str  # of its class
    source: str  # the folder or the zip file that it lies in
    path: str  # in that source


class Pictures(Dataset[Sample]):
    """Pictures in folders named by class, or in zip files of such folders, which are read in place."""

    def __init__(self, sources: list[Path]):
        entries: list[Entry] = []
        for source in sources:
            entries += list_pictures(source)
        if not entries:
            named = ", ".join(map(str, sources))
            raise UserError(f"{named}: no pictures in class folders; name others in --images.")
        self.entries = sorted(entries)
        self.classes = sorted({entry.name for entry in entries})
        self.zips: dict[str, ZipFile] = {}  # opened so far

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Sample:
        entry = self.entries[index]
        try:
            with self.open(entry) as file, Image.open(file) as picture:
                pixels = TF.pil_to_tensor(picture.convert("RGB"))  # (3, H, W) uint8
        except BROKEN as error:
            where = f"{entry.path} in {entry.source}"
            raise UserError(f"{where} cannot be read ({error}): take it out or fetch it again.") from error
        label = self.classes.index(entry.name)
        return tv_tensors.Image(pixels), {"label": torch.tensor(label)}

    def open(self, entry: Entry) -> IO[bytes]:
        """The file of a picture, opened for reading."""
        source = Path(entry.source)
        if source.is_dir():
            return open(source / entry.path, "rb")
        if entry.source not in self.zips:
            self.zips[entry.source] = ZipFile(source)
        return self.zips[entry.source].open(entry.path)


def list_pictures(source: Path) -> list[Entry]:
    """Every picture in a folder or a zip file; a folder's zip files count as well."""
    entries: list[Entry] = []
    if source.is_dir():
        for archive in source.rglob("*.zip"):
            entries += list_pictures(archive)
        paths = [path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()]
    else:
        paths = zip_names(source)
    for path in paths:
        in_class_folder = "/" in path
        if in_class_folder and path.lower().endswith(PICTURES):
            entries.append(Entry(Path(path).parent.name, str(source), path))
    return entries


def zip_names(path: Path) -> list[str]:
    """The names in a zip file. Raises UserError when it is none."""
    try:
        with ZipFile(path) as file:
            return file.namelist()
    except (OSError, BadZipFile) as error:
        raise UserError(f"{path} is neither a folder nor a zip file ({error}): name another in --images.") from error


# ---- training


@dataclass(frozen=True)
class Epoch:
    """One epoch of stage 0."""

    loss: float  # mean over the steps
    top1: float  # accuracy on the pictures held out
    minutes: float


class Stage0:
    """The training of stage 0, resumable after every epoch."""

    def __init__(self, pictures: Pictures, widths: str, epochs: int, state: Path, seed: int = 0):
        torch.manual_seed(seed)
        self.pictures = pictures
        self.epochs = epochs
        self.state = state  # the file to continue from
        self.device = pick_device()

        held_out = range(0, len(pictures), HELD_OUT)
        others = [index for index in range(len(pictures)) if index not in held_out]
        self.held = Subset(pictures, held_out)
        self.train = Subset(pictures, others)

        self.model = UnifiedModel(widths, num_det=1, num_cls=1)  # the last layer is not trained here
        start = find_starting_weights(widths, include_stage0=False)
        load_starting_weights(self.model, start)
        self.start = start.label
        self.classifier = nn.Linear(self.model.head.last.in_channels, len(pictures.classes))
        place_model(self.model, self.device)
        self.classifier.to(self.device)

        self.steps = len(self.train) // BATCH  # in an epoch
        trunk_lr = LR * TRUNK_LR_FACTOR if self.model.has_imagenet_trunk else LR
        groups = parameter_groups(self.model, trunk_lr, LR, [self.classifier])
        self.optimizer = torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY, fused=True)
        total_steps = self.steps * epochs

        def factor(step: int) -> float:
            return warmup_cosine(step, total_steps, WARMUP_FRACTION)

        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor)
        self.history: list[Epoch] = []
        if state.exists():
            self.load()

    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""
        return len(self.history) >= self.epochs

    def epoch(self) -> Epoch:
        """One pass over the pictures, then the accuracy on those held out."""
        started = time.perf_counter()
        self.model.train()
        if self.model.has_imagenet_trunk:
            # the new layers first, then both
            first_epoch = not self.history
            self.model.backbone.trunk.requires_grad_(not first_epoch)
            self.model.backbone.trunk.freeze_early()
        total = 0.0
        title = f"stage 0, epoch {len(self.history) + 1}/{self.epochs}"
        for images, labels in tqdm(self.train_loader(), desc=title, mininterval=1):
            total += self.step(images, labels)
        loss = total / self.steps
        top1 = self.accuracy()
        minutes = (time.perf_counter() - started) / 60
        self.history.append(Epoch(loss, top1, minutes))
        return self.history[-1]

    def step(self, images: Tensor, labels: Tensor) -> float:
        """One optimiser step on images (B, 3, SIZE, SIZE) and labels (B,); returns the loss."""
        loss = F.cross_entropy(self.logits(images), labels.to(self.device), label_smoothing=SMOOTHING)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        return loss.item()

    def logits(self, images: Tensor) -> Tensor:
        """(B, classes) from images (B, 3, H, W) float32 in [0, 1]."""
        with mixed_precision(self.device):
            features = self.model.head_features(images.to(self.device))  # (B, width, h, w)
        return self.classifier(mean_over_cells(features.float()))

    @torch.inference_mode()
    def accuracy(self) -> float:
        """Top-1 on the pictures held out."""
        self.model.eval()
        hits = 0
        for images, labels in self.held_out_loader():
            predicted = self.logits(images).argmax(1).cpu()
            hits += int((predicted == labels).sum())
        return hits / len(self.held)

    def train_loader(self) -> DataLoader[Sample]:
        """Batches to train on, in random order; what does not fill the last one is left out."""
        return self.loader(self.train, strong_augmentation("cls", SIZE), shuffle=True)

    def held_out_loader(self) -> DataLoader[Sample]:
        """Batches of the pictures that are held out."""
        return self.loader(self.held, eval_transform("cls", SIZE), shuffle=False)

    def loader(self, subset: Subset[Sample], transform: nn.Module, shuffle: bool) -> DataLoader[Sample]:
        """Batches of a subset; worker processes only feed a GPU, on a CPU they would take the cores from training."""
        return DataLoader(
            subset,
            BATCH,
            shuffle,
            collate_fn=partial(collate, transform=transform, task="cls"),
            num_workers=WORKERS if self.device == "cuda" else 0,
            drop_last=shuffle,
        )

    def save(self) -> None:
        """Keep the state after an epoch."""
        content = {
            "model": self.model.state_dict(),
            "classifier": self.classifier.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "history": [asdict(epoch) for epoch in self.history],
            "rng": torch.get_rng_state(),
        }
        checkpoint.save(self.state, content)

    def load(self) -> None:
        """Continue after the last finished epoch."""
        content = checkpoint.load(self.state)
        self.model.load_state_dict(content["model"])
        self.classifier.load_state_dict(content["classifier"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.schedule.load_state_dict(content["schedule"])
        self.history = [Epoch(**values) for values in content["history"]]
        torch.set_rng_state(content["rng"])

    def result(self) -> dict[str, Any]:
        """What a new model starts from: all but its head's last layer, and the classifier beside it."""
        fold_batchnorm(self.model)
        below = {name: value for name, value in self.model.state_dict().items() if not name.startswith(LAST)}
        return {
            "model": checkpoint.halved(below),
            "classifier": checkpoint.halved(self.classifier.state_dict()),
            "classes": self.pictures.classes,
            "widths": self.model.widths,
        }


# ---- the whole stage


@dataclass(frozen=True)
class Card:
    """What is said beside the weights about them."""

    file: str
    sha256: str
    widths: str
    parameters: int
    start: str  # label of the starting weights
    pictures: int  # trained on
    classes: int
    epochs: int
    minutes: float  # of training
    top1: float  # accuracy on the pictures held out
    held_out: int  # how many those are


def pretrain(sources: list[Path], widths: str, epochs: int, out: Path, folder: Path) -> Card:
    """Run stage 0, or continue it; writes the weights (half precision) to `out` and their card beside them.

    folder: holds the state to continue from. Raises UserError when the sources have no pictures, or broken ones.
    """
    stage = Stage0(Pictures(sources), widths, epochs, folder / f"stage0_{widths}.state.pt")
    while not stage.finished:
        epoch = stage.epoch()
        stage.save()
        scores = f"loss {epoch.loss:.3f}, Top-1 {epoch.top1:.3f}, {epoch.minutes:.1f} minutes"
        print(f"epoch {len(stage.history)}: {scores}")
    result = stage.result()
    checkpoint.save(out, result)
    card = Card(
        file=out.name,
        sha256=files.sha256(out),
        widths=widths,
        parameters=sum(value.numel() for value in result["model"].values()),
        start=stage.start,
        pictures=len(stage.train),
        classes=len(stage.pictures.classes),
        epochs=epochs,
        minutes=sum(epoch.minutes for epoch in stage.history),
        top1=stage.history[-1].top1,
        held_out=len(stage.held),
    )
    files.write_json(out.with_suffix(".json"), asdict(card))
    return card
