"""Stage 0, optional: warms the network up to the head's last layer by classifying ImageNet pictures.

Public weights exist for the trunk alone; pyramid pooling, feature fusion and the head would otherwise start at random
on 240 photographs. A linear classifier reads the mean of the features that the head's last layer will read. It is kept
with the weights: the later stages must not forget what it knows (remedies.py).
A trunk with ImageNet weights rests in the first epoch, so that what is new does not distort it (A. Kumar et al.,
"Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution", ICLR 2022).
"""

import hashlib
import time
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as TF
from tqdm.auto import tqdm

from mtl_utils import checkpoint, files, weights
from mtl_utils.data import BROKEN, Sample
from mtl_utils.files import UserError
from mtl_utils.losses import SMOOTHING
from mtl_utils.model import LAST, UnifiedModel, fold_batchnorm
from mtl_utils.training import mixed_precision, warmup_cosine
from mtl_utils.transforms import collate, eval_transform, strong_augmentation

PICTURES = (".jpg", ".jpeg", ".png", ".webp")
HELD_OUT = 20  # every 20th picture is not trained on but measured
SIZE = 128  # input pixels: the pictures are small, and so are the objects of the stages to come
BATCH = 64
LR = 1e-3  # AdamW's, of what starts at random
TRUNK_LR = 0.1  # fraction of it for a trunk with ImageNet weights
WEIGHT_DECAY = 0.05


class Pictures(Dataset):
    """Pictures in folders named by class, or in zip files of such folders, which are read in place."""

    def __init__(self, sources: list[Path]):
        self.entries = sorted(entry for source in sources for entry in list_pictures(source))
        if not self.entries:
            raise UserError(f"{', '.join(map(str, sources))}: no pictures in class folders; name others in --images.")
        self.classes = sorted({name for name, _, _ in self.entries})
        self.zips: dict[str, ZipFile] = {}

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Sample:
        name, source, path = self.entries[index]
        try:
            with self.open(source, path) as file, Image.open(file) as picture:
                image = tv_tensors.Image(TF.pil_to_tensor(picture.convert("RGB")))
        except BROKEN as error:
            raise UserError(f"{path} in {source} cannot be read ({error}): take it out or fetch it again.") from error
        return image, {"label": torch.tensor(self.classes.index(name))}

    def open(self, source: str, path: str):
        """The file of a picture, opened for reading."""
        if Path(source).is_dir():
            return open(Path(source) / path, "rb")
        if source not in self.zips:
            self.zips[source] = ZipFile(source)
        return self.zips[source].open(path)


def list_pictures(source: Path) -> list[tuple[str, str, str]]:
    """(class, source, path in it) of every picture in a folder or a zip file; a folder's zip files count as well."""
    if source.is_dir():
        inner = [entry for file in source.rglob("*.zip") for entry in list_pictures(file)]
        paths = [path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()]
    else:
        inner, paths = [], zip_names(source)
    found = [Path(path) for path in paths if path.lower().endswith(PICTURES) and "/" in path]
    return inner + [(path.parent.name, str(source), path.as_posix()) for path in found]


def zip_names(path: Path) -> list[str]:
    """The names in a zip file. Raises UserError when it is none."""
    try:
        with ZipFile(path) as file:
            return file.namelist()
    except (OSError, BadZipFile) as error:
        raise UserError(f"{path} is neither a folder nor a zip file ({error}): name another in --images.") from error


class Stage0:
    """The training of stage 0, resumable after every epoch."""

    def __init__(self, pictures: Pictures, widths: str, epochs: int, state: Path, seed: int = 0):
        torch.manual_seed(seed)
        self.pictures, self.epochs, self.state = pictures, epochs, state
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        held = range(0, len(pictures), HELD_OUT)
        self.train, self.held = Subset(pictures, sorted(set(range(len(pictures))) - set(held))), Subset(pictures, held)
        self.model = UnifiedModel(widths, num_det=1, num_cls=1)
        self.start = weights.load_starting_weights(self.model, warmed=False)
        self.classifier = nn.Linear(self.model.head[-1].in_channels, len(pictures.classes))
        self.model.to(self.device, memory_format=torch.channels_last)
        self.classifier.to(self.device)
        self.steps = len(self.train) // BATCH
        backbone, head = self.model.backbone, self.model.head
        new = [p for part in (backbone.pooling, backbone.fusion, head, self.classifier) for p in part.parameters()]
        factor = TRUNK_LR if self.model.has_imagenet_trunk else 1.0
        groups = [{"params": backbone.trunk.parameters(), "lr": LR * factor}, {"params": new, "lr": LR}]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY, fused=True)
        total = self.steps * epochs
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda i: warmup_cosine(i, total, 0.05))
        self.history: list[dict] = []
        if state.exists():
            self.load()

    def loader(self, subset: Subset, transform: nn.Module, shuffle: bool) -> DataLoader:
        """Batches of a subset; worker processes only feed a GPU, on a CPU they would take the cores from training."""
        join = lambda samples: collate(samples, transform, "cls")  # noqa: E731
        workers = 8 if self.device == "cuda" else 0
        return DataLoader(subset, BATCH, shuffle, collate_fn=join, num_workers=workers, drop_last=shuffle)

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """(B, classes) from a batch of images."""
        with mixed_precision(self.device):
            hidden = self.model.head_features(images.to(self.device))
        return self.classifier(hidden.float().mean((2, 3)))

    def epoch(self) -> dict:
        """One pass over the pictures, then the accuracy on those held out."""
        started, total = time.perf_counter(), 0.0
        self.model.train()
        if self.model.has_imagenet_trunk:
            self.model.backbone.trunk.requires_grad_(bool(self.history))  # first what is new, then both (LP-FT)
            self.model.backbone.trunk.freeze_early()
        title = f"stage 0, epoch {len(self.history) + 1}/{self.epochs}"
        for images, labels in tqdm(
            self.loader(self.train, strong_augmentation("cls", SIZE), True), desc=title, mininterval=1
        ):
            loss = F.cross_entropy(self.logits(images), labels.to(self.device), label_smoothing=SMOOTHING)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            total += loss.item()
        entry = {"loss": total / self.steps, "top1": self.accuracy(), "minutes": (time.perf_counter() - started) / 60}
        self.history.append(entry)
        return entry

    @torch.inference_mode()
    def accuracy(self) -> float:
        """Top-1 on the pictures held out."""
        self.model.eval()
        batches = self.loader(self.held, eval_transform("cls", SIZE), False)
        hits = sum((self.logits(images).argmax(1).cpu() == labels).sum().item() for images, labels in batches)
        return hits / len(self.held)

    def parts(self) -> dict:
        """Everything that has a state."""
        return {n: getattr(self, n) for n in ("model", "classifier", "optimizer", "schedule")}

    def save(self) -> None:
        """Keep the state after an epoch."""
        chance = {"history": self.history, "rng": torch.get_rng_state()}
        checkpoint.save(self.state, {n: part.state_dict() for n, part in self.parts().items()} | chance)

    def load(self) -> None:
        """Continue after the last finished epoch."""
        content = checkpoint.load(self.state)
        for name, part in self.parts().items():
            part.load_state_dict(content[name])
        self.history = content["history"]
        torch.set_rng_state(content["rng"])

    def result(self) -> dict:
        """What a new model starts from: all but its head's last layer, and the classifier beside it."""
        fold_batchnorm(self.model)
        below = {name: value for name, value in self.model.state_dict().items() if not name.startswith(LAST)}
        parts = {"model": checkpoint.halved(below), "classifier": checkpoint.halved(self.classifier.state_dict())}
        return parts | {"classes": self.pictures.classes, "widths": self.model.widths}


def pretrain(sources: list[Path], widths: str, epochs: int, out: Path, folder: Path) -> dict:
    """Run stage 0, or continue it; writes the weights (half precision) to `out` and their card beside them."""
    stage = Stage0(Pictures(sources), widths, epochs, folder / f"stage0_{widths}.state.pt")
    while len(stage.history) < epochs:
        entry = stage.epoch()
        stage.save()
        print("epoch {}: loss {loss:.3f}, Top-1 {top1:.3f}, {minutes:.1f} minutes".format(len(stage.history), **entry))
    result = stage.result()
    checkpoint.save(out, result)
    about = {
        "file": out.name,
        "sha256": hashlib.sha256(out.read_bytes()).hexdigest(),
        "widths": widths,
        "parameters": sum(value.numel() for value in result["model"].values()),
        "start": stage.start,
        "pictures": len(stage.train),
        "classes": len(stage.pictures.classes),
        "epochs": epochs,
        "minutes": sum(entry["minutes"] for entry in stage.history),
        "top1": stage.history[-1]["top1"],
        "held_out": len(stage.held),
    }
    files.write_json(out.with_suffix(".json"), about)
    return about
