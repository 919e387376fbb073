"""The remedies that the settings ask for."""

from mtl_utils.files import UserError
from mtl_utils.model import UnifiedModel
from mtl_utils.remedies.derpp import DarkExperienceReplay
from mtl_utils.remedies.ewc import ElasticWeightConsolidation
from mtl_utils.remedies.had import HeterogeneityAware
from mtl_utils.remedies.lwf import LearningWithoutForgetting
from mtl_utils.replay import ReplayBuffer
from mtl_utils.settings import Settings
from mtl_utils.tasks import Task
from mtl_utils.training import Remedy


def make_remedies(settings: Settings, model: UnifiedModel, task: Task, buffer: ReplayBuffer) -> list[Remedy]:
    """The remedies that the settings ask for, for a stage that starts from `model` and `buffer`.

    Raises UserError when DER++ has fewer than two images to share out.
    """
    if settings.derpp_weight and settings.replay_per_task < 2:
        raise UserError("DER++ replays labels and stored outputs by halves: set Settings.replay_per_task to 2 or more.")
    remedies: list[Remedy] = []
    if settings.joint:  # all tasks are learned at once: none is an earlier one
        return remedies
    has_teacher = bool(settings.earlier(task))  # the first stage has no previous model
    if settings.lwf_weight and has_teacher:
        remedies.append(LearningWithoutForgetting(settings.lwf_weight, model))
    if settings.had_weight and has_teacher:
        remedies.append(HeterogeneityAware(settings.had_weight, model))
    # these two store something after every stage, the first one included, where their losses are 0
    if settings.derpp_weight:
        remedies.append(DarkExperienceReplay(settings.derpp_weight))
    if settings.ewc_weight:
        remedies.append(ElasticWeightConsolidation(settings.ewc_weight, model, buffer.fisher))
    return remedies
