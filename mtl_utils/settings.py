"""Every constant of the project in one place: tasks, classes, paths, environment variables and the training settings.

Nothing here imports another module of the package; every other module may import this one.
"""

import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]  # the folder that holds README.md, notebooks/ and data/
RESULTS = PROJECT / "figures" / "metrics.json"  # of the committed run on real photographs
WEIGHTS = PROJECT / "data" / "weights" / "three_tasks.pt"  # its model after stage 3

TASKS = ("seg", "det", "cls")  # the order of the three stages, fixed by the assignment
TASK_NAMES = {"seg": "segmentation", "det": "detection", "cls": "classification"}
METRIC_NAMES = {"seg": "mIoU", "det": "mAP@50", "cls": "Top-1"}  # the one metric that a task is judged by
FOLDERS = {"seg": "mini_voc_seg", "det": "mini_coco_det", "cls": "imagenette_160"}
SPLITS = ("train", "val")

IGNORE = 255  # the value of a VOC mask at object borders: neither trained on nor evaluated
VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
IMAGENETTE_NAMES = {
    "n01440764": "tench", "n02102040": "English springer", "n02979186": "cassette player", "n03000684": "chain saw",
    "n03028079": "church", "n03394916": "French horn", "n03417042": "garbage truck", "n03425413": "gas pump",
    "n03445777": "golf ball", "n03888257": "parachute",
}  # fmt: skip


def user_path(value: str | Path) -> Path:
    """A path that a user gave: relative ones count from the current folder, or else from the project's."""
    path = Path(value).expanduser()
    return path.resolve() if path.exists() else (PROJECT / path).resolve()


class UserError(Exception):
    """A mistake that the user can mend: its text is one sentence that names the file and the remedy."""


@dataclass(frozen=True)
class Settings:
    """Everything that decides the outcome of a run, apart from the data and the starting weights."""

    profile: str = "full"  # the name under which these values are listed in PROFILES
    seed: int = 0  # of the weights that start at random, the order of the images, augmentation and replay
    widths: str = "mobilenetv2"  # channel widths of Fast-SCNN: "mobilenetv2" (ImageNet weights load) or "paper"
    size: dict = field(default_factory=lambda: dict(seg=320, det=384, cls=192))  # input pixels while training
    test_size: dict = field(default_factory=lambda: dict(seg=384, det=384, cls=224))  # and in use: windows and crops
    # enlarge what training sees (H. Touvron et al., "Fixing the train-test resolution discrepancy", NeurIPS 2019)
    epochs: dict = field(default_factory=lambda: dict(seg=45, det=90, cls=25))  # passes over the task's own images
    batch: dict = field(default_factory=lambda: dict(seg=8, det=8, cls=16))  # new images in a training step
    lr: dict = field(default_factory=lambda: dict(seg=1e-3, det=1e-3, cls=2e-4))  # AdamW's, of the parts that start at
    # random; classification starts near its goal, and a high rate there costs the replayed tasks
    trunk_lr: float = 0.1  # the ImageNet-trained layers learn at this fraction of lr, so that they keep what they know
    freeze: bool = True  # ImageNet-trained layers up to stride 4 do not learn: faster, and nothing there is forgotten
    rest: bool = True  # a trunk with ImageNet weights learns in the first stage only, for the same two reasons
    scratch_lr: float = 3.0  # without ImageNet weights everything learns at this multiple of lr: it has far to go
    weight_decay: float = 0.01  # AdamW's decoupled decay
    warmup: float = 0.05  # fraction of a stage's steps in which the learning rate rises to lr
    calm: float = 0.1  # last fraction of a stage's epochs without heavy augmentation; the best model is one of these
    ema: float = 0.99  # decay per step of the averaged weights that are evaluated and saved
    tasks: list = field(default_factory=lambda: list(TASKS))  # in the order of the stages; one: a single-task baseline
    joint: bool = False  # all tasks at once in the last one's stage, with all their images: the upper bound
    memory: int = 240  # images a task in the replay buffer: all of a mini set
    selection: str = "balanced"  # which images it keeps: "balanced" over the classes, "random", or by "herding"
    draw: int = 6  # replayed images of each earlier task in a training step (the assignment allows 10); 0: no replay
    replay_weight: float = 1.0  # weight of an earlier task's loss beside the new task's
    distill: float = 1.0  # weight of keeping what stage 0 knows; without its weights there is nothing to keep
    lwf: float = 0.0  # weights of the other remedies (remedies.py), 0 for none: learning without forgetting,
    had: float = 0.0  # heterogeneity-aware distillation,
    der: float = 0.0  # DER++, which takes half of `draw` for stored outputs,
    ewc: float = 0.0  # and elastic weight consolidation
    mask_boxes: bool = True  # a replayed segmentation image also teaches detection, by boxes around its masks' objects
    fold: bool = True  # fold BatchNorm into the convolutions after stage 1; False lets its statistics drift on
    clip: float = 5.0  # largest norm of the gradient, against the rare bad batch
    eval_every: int = 10  # epochs between two evaluations on val while training; the last epoch always is one

    def earlier(self, task: str) -> list[str]:
        """The tasks learned before a task, or in joint training with it."""
        return self.tasks[: self.tasks.index(task)]

    def as_dict(self) -> dict:
        """The settings as plain types, as they are stored in checkpoints and metrics.json."""
        return asdict(self)


MAX_DRAW = 10  # "replay buffer (<= 10 images per task per step)": the assignment's rule, asserted at every step

PROFILES = {
    # every notebook in three minutes on two cores: for the tests, says nothing about quality
    "smoke": Settings(
        profile="smoke",
        size=dict(seg=96, det=96, cls=64),
        test_size=dict(seg=96, det=96, cls=64),
        epochs=dict(seg=2, det=2, cls=2),
        eval_every=2,
    ),
    # the three stages in less than 20 minutes on two cores
    "quick": Settings(
        profile="quick",
        size=dict(seg=192, det=224, cls=160),
        test_size=dict(seg=224, det=224, cls=192),
        epochs=dict(seg=25, det=25, cls=10),
    ),
    "full": Settings(),
}


def default_profile() -> str:
    """MTL_PROFILE if it is set, else "full" where there is a GPU and "quick" where there is none."""
    import torch

    return os.environ.get("MTL_PROFILE") or ("full" if torch.cuda.is_available() else "quick")


def get_settings(profile: str | None = None, **changes) -> Settings:
    """The settings of a profile (None: the default one), with single values replaced.

    Raises UserError when there is no profile of that name.
    """
    name = profile or default_profile()
    if name not in PROFILES:
        raise UserError(f"There is no profile {name!r}: --profile or MTL_PROFILE is one of {', '.join(PROFILES)}.")
    return replace(PROFILES[name], **changes)
