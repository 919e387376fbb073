"""The settings of a run, a comment for each field, and the three profiles that a user chooses from.

Imports nothing that has to be installed.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from mtl_utils import environment
from mtl_utils.files import UserError
from mtl_utils.tasks import TASKS, Task


@dataclass(frozen=True)
class Settings:
    """Everything that decides the outcome of a run, apart from the data and the starting weights."""

    profile: str = "full"  # the name under which these values are listed in PROFILES
    seed: int = 0  # of the weights that start at random, the order of the images, augmentation and replay

    # sides of the square inputs: while training on each task, and in evaluation, where one forward serves all three
    train_size: dict[Task, int] = field(default_factory=lambda: {"seg": 384, "det": 384, "cls": 384})
    eval_size: int = 448

    # optimisation
    epochs: dict[Task, int] = field(
        default_factory=lambda: {"seg": 30, "det": 60, "cls": 10}
    )  # passes over the task's own images
    batch_size: dict[Task, int] = field(
        default_factory=lambda: {"seg": 8, "det": 4, "cls": 16}
    )  # new images in a training step
    # AdamW's rate for the parts that start at random
    lr: dict[Task, float] = field(default_factory=lambda: {"seg": 1e-3, "det": 1e-3, "cls": 1e-3})
    trunk_lr_factor: float = 0.1  # ImageNet-trained layers learn at this fraction of lr, to keep what they learned
    freeze_trunk: bool = True  # the whole ImageNet-trained trunk is frozen: faster, and nothing in it is forgotten
    # whether a frozen trunk is joined by pyramid pooling and fusion, once an earlier task has trained these
    freeze_neck: dict[Task, bool] = field(default_factory=lambda: {"seg": False, "det": False, "cls": True})
    scratch_lr_factor: float = 3.0  # without ImageNet weights all layers learn at this multiple of lr
    weight_decay: float = 0.01  # AdamW's decoupled decay
    warmup_fraction: float = 0.05  # fraction of a stage's steps in which the learning rate rises to lr
    weak_augmentation: float = 0.1  # last fraction of epochs with weak augmentation; the best epoch is one of these
    ema_decay: float = 0.99  # decay per step of the averaged weights that are evaluated and saved
    max_grad_norm: float = 5.0  # the gradient is clipped to this norm, against the rare bad batch
    fold_batchnorm: bool = True  # fold BatchNorm into the convolutions after stage 1, so that no statistics drift
    eval_every: int = 10  # epochs between two evaluations on val while training; the last epoch always is one

    # the sequence of tasks
    tasks: list[Task] = field(default_factory=lambda: list(TASKS))  # one: a single-task baseline
    joint: bool = False  # all tasks at once, in the last one's stage; the others' images lie in the replay buffer

    # against forgetting: replay, then the weights of other losses, 0 for none (remedies/)
    buffer_size: int = 240  # images a task in the replay buffer: all of a mini set
    exemplar_selection: str = "balanced"  # how they are selected: "balanced" over the classes, "random" or "herding"
    replay_per_task: int = 6  # replayed images of each earlier task in a step (the assignment allows 10); 0: no replay
    replay_weight: float = 1.0  # weight of an earlier task's loss beside the new task's
    lwf_weight: float = 0.0  # learning without forgetting
    had_weight: float = 0.0  # heterogeneity-aware distillation
    derpp_weight: float = 0.0  # DER++, which takes half of `replay_per_task` for stored logits
    ewc_weight: float = 0.0  # elastic weight consolidation
    copy_shared_classes: bool = True  # detection's classes that segmentation has learned start from its last layer
    boxes_from_masks: bool = True  # a replayed mask also teaches detection, by boxes around its objects

    @property
    def caption(self) -> str:
        """What a figure says of the run behind it."""
        return f"profile {self.profile}, seed {self.seed}"

    def earlier(self, task: Task) -> list[Task]:
        """The tasks learned before a task, or in joint training with it."""
        return self.tasks[: self.tasks.index(task)]

    def of_tasks(self, tasks: Iterable[Task]) -> "Settings":
        """Without what is set for other tasks than these: a stage does not depend on the epochs of a later one."""
        kept = set(tasks)
        return replace(
            self,
            train_size=only(self.train_size, kept),
            epochs=only(self.epochs, kept),
            batch_size=only(self.batch_size, kept),
            lr=only(self.lr, kept),
            freeze_neck=only(self.freeze_neck, kept),
        )

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain types, as they are stored in checkpoints and metrics.json."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Settings":
        """The inverse of as_dict. Raises KeyError where a field is missing, TypeError for one that does not exist."""
        for name in cls().as_dict():
            values[name]  # a default in its place would make other settings look like these
        return cls(**values)


def only(values: dict[Task, Any], tasks: set[Task]) -> dict[Task, Any]:
    """The values of some tasks."""
    return {task: value for task, value in values.items() if task in tasks}


# "replay buffer (<= 10 images per task per step)": the assignment's rule, asserted at every step
MAX_REPLAY_PER_TASK = 10

PROFILES = {
    # every notebook in two or three minutes on two cores: for the tests, its metrics mean nothing
    "smoke": Settings(
        profile="smoke",
        train_size={"seg": 96, "det": 96, "cls": 96},
        eval_size=96,
        epochs={"seg": 2, "det": 4, "cls": 2},
        eval_every=2,
    ),
    # the three stages in less than 20 minutes on two cores
    "quick": Settings(
        profile="quick",
        train_size={"seg": 256, "det": 256, "cls": 224},
        eval_size=320,
        epochs={"seg": 25, "det": 25, "cls": 10},
    ),
    "full": Settings(),
}


def default_profile() -> str:
    """MTL_PROFILE if it is set, else "full" where a GPU is used and "quick" where none is."""
    chosen = environment.profile()
    if chosen:
        return chosen
    import torch  # here, so that the settings can be read where torch is not installed

    device = environment.device() or ("cuda" if torch.cuda.is_available() else "cpu")
    return "full" if device == "cuda" else "quick"


def get_settings(profile: str | None = None, **overrides: Any) -> Settings:
    """The settings of a profile (None: the default one), with single values replaced.

    Raises UserError when there is no profile of that name.
    """
    name = profile or default_profile()
    if name not in PROFILES:
        raise UserError(f"There is no profile {name!r}: --profile or MTL_PROFILE is one of {', '.join(PROFILES)}.")
    return replace(PROFILES[name], **overrides)
