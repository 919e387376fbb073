"""The settings of a run, a comment for each field, and the three profiles that a user chooses from."""

import os
from dataclasses import asdict, dataclass, field, replace

from mtl_utils.files import UserError
from mtl_utils.tasks import TASKS


@dataclass(frozen=True)
class Settings:
    """Everything that decides the outcome of a run, apart from the data and the starting weights."""

    profile: str = "full"  # the name under which these values are listed in PROFILES
    seed: int = 0  # of the weights that start at random, the order of the images, augmentation and replay
    widths: str = "mobilenetv2"  # channel widths of Fast-SCNN: "mobilenetv2" (ImageNet weights load) or "paper"
    train_size: dict = field(default_factory=lambda: dict(seg=320, det=384, cls=192))  # input pixels while training
    eval_size: dict = field(default_factory=lambda: dict(seg=384, det=384, cls=224))  # and in use: windows and crops
    # enlarge what training sees (H. Touvron et al., "Fixing the train-test resolution discrepancy", NeurIPS 2019)
    epochs: dict = field(default_factory=lambda: dict(seg=45, det=90, cls=25))  # passes over the task's own images
    batch_size: dict = field(default_factory=lambda: dict(seg=8, det=8, cls=16))  # new images in a training step
    lr: dict = field(default_factory=lambda: dict(seg=1e-3, det=1e-3, cls=2e-4))  # AdamW's, of the parts that start at
    # random; classification starts near its goal, and a high rate there costs the replayed tasks
    trunk_lr_factor: float = (
        0.1  # the ImageNet-trained layers learn at this fraction of lr, so that they keep what they know
    )
    freeze_stem: bool = (
        True  # ImageNet-trained layers up to stride 4 do not learn: faster, and nothing there is forgotten
    )
    freeze_trunk: bool = True  # a trunk with ImageNet weights learns in the first stage only, for the same two reasons
    scratch_lr_factor: float = (
        3.0  # without ImageNet weights everything learns at this multiple of lr: it has far to go
    )
    weight_decay: float = 0.01  # AdamW's decoupled decay
    warmup_fraction: float = 0.05  # fraction of a stage's steps in which the learning rate rises to lr
    weak_augmentation: float = (
        0.1  # last fraction of a stage's epochs without heavy augmentation; the best model is one of these
    )
    ema_decay: float = 0.99  # decay per step of the averaged weights that are evaluated and saved
    tasks: list = field(default_factory=lambda: list(TASKS))  # in the order of the stages; one: a single-task baseline
    joint: bool = False  # all tasks at once in the last one's stage, with all their images: the upper bound
    buffer_size: int = 240  # images a task in the replay buffer: all of a mini set
    exemplar_selection: str = (
        "balanced"  # which images it keeps: "balanced" over the classes, "random", or by "herding"
    )
    replay_per_task: int = (
        6  # replayed images of each earlier task in a training step (the assignment allows 10); 0: no replay
    )
    replay_weight: float = 1.0  # weight of an earlier task's loss beside the new task's
    stage0_distillation: float = (
        1.0  # weight of keeping what stage 0 knows; without its weights there is nothing to keep
    )
    lwf_weight: float = 0.0  # weights of the other remedies (remedies.py), 0 for none: learning without forgetting,
    had_weight: float = 0.0  # heterogeneity-aware distillation,
    derpp_weight: float = 0.0  # DER++, which takes half of `draw` for stored outputs,
    ewc_weight: float = 0.0  # and elastic weight consolidation
    boxes_from_masks: bool = (
        True  # a replayed segmentation image also teaches detection, by boxes around its masks' objects
    )
    fold_batchnorm: bool = (
        True  # fold BatchNorm into the convolutions after stage 1; False lets its statistics drift on
    )
    max_grad_norm: float = 5.0  # largest norm of the gradient, against the rare bad batch
    eval_every: int = 10  # epochs between two evaluations on val while training; the last epoch always is one

    def earlier(self, task: str) -> list[str]:
        """The tasks learned before a task, or in joint training with it."""
        return self.tasks[: self.tasks.index(task)]

    def as_dict(self) -> dict:
        """The settings as plain types, as they are stored in checkpoints and metrics.json."""
        return asdict(self)


MAX_REPLAY_PER_TASK = (
    10  # "replay buffer (<= 10 images per task per step)": the assignment's rule, asserted at every step
)
PROFILES = {
    # every notebook in three minutes on two cores: for the tests, says nothing about quality
    "smoke": Settings(
        profile="smoke",
        train_size=dict(seg=96, det=96, cls=64),
        eval_size=dict(seg=96, det=96, cls=64),
        epochs=dict(seg=2, det=2, cls=2),
        eval_every=2,
    ),
    # the three stages in less than 20 minutes on two cores
    "quick": Settings(
        profile="quick",
        train_size=dict(seg=192, det=224, cls=160),
        eval_size=dict(seg=224, det=224, cls=192),
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
