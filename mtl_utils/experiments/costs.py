"""What a remedy costs: the bytes that a stage needs of the earlier ones, and the images that a step computes."""

from typing import Any

from torch import Tensor

from mtl_utils.model import count_parameters
from mtl_utils.run import Run, build
from mtl_utils.settings import Settings
from mtl_utils.stages import load_state
from mtl_utils.tasks import Task

BYTES_PER_WEIGHT = 2  # of a model's file, which holds half precision


def stored_bytes(run: Run, last: Task) -> int:
    """What a finished run kept for its last stage beside the model that it trained.

    Exemplars where they are replayed, as the files that they are stored as; what remedies store (logits, Fisher
    information); and the previous model for distillation or EWC.
    """
    settings = run.settings
    buffer = dict(load_state(run.path(last, ".state.pt"))["buffer"])
    if not settings.replay_per_task:  # what is stored is not used
        del buffer["exemplars"]
    total = tensor_bytes(buffer)
    if needs_previous_model(settings):
        total += BYTES_PER_WEIGHT * count_parameters(build(settings, run.classes))
    return total


def tensor_bytes(value: Any) -> int:
    """The bytes of all tensors in a state dict, or in lists and dicts of tensors."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        value = list(value.values())
    return sum(map(tensor_bytes, value)) if isinstance(value, list) else 0


def needs_previous_model(settings: Settings) -> bool:
    """Whether a remedy compares with the previous stage's model, in a sequence of several stages."""
    compares = bool(settings.lwf_weight or settings.had_weight or settings.ewc_weight)
    return compares and len(settings.tasks) > 1 and not settings.joint


def images_per_step(settings: Settings) -> int:
    """The images that pass through a network in a training step of stage 2, the teacher's forward included."""
    new = settings.batch_size["det"]
    teacher = new if settings.lwf_weight or settings.had_weight else 0
    return new + settings.replay_per_task + teacher
