"""The remedies that the settings ask for."""

from torch import Tensor

from mtl_utils import weights
from mtl_utils.files import UserError
from mtl_utils.model import UnifiedModel
from mtl_utils.remedies.derpp import DarkExperienceReplay
from mtl_utils.remedies.ewc import ElasticWeightConsolidation
from mtl_utils.remedies.had import HeterogeneityAware
from mtl_utils.remedies.lwf import LearningWithoutForgetting
from mtl_utils.remedies.stage0 import Stage0Distillation
from mtl_utils.settings import Settings
from mtl_utils.training import Remedy


def make_remedies(settings: Settings, model: UnifiedModel, task: str, fisher: dict[str, Tensor]) -> list[Remedy]:
    """The remedies that the settings ask for, for a stage that starts from `model`."""
    if settings.derpp_weight and settings.replay_per_task < 2:
        raise UserError("DER++ replays labels and stored outputs by halves: set Settings.replay_per_task to 2 or more.")
    path, remedies = weights.find_start(settings.widths), []
    if settings.stage0_distillation and path and weights.weights_label(settings.widths) != weights.NOTHING:
        content = weights.read(path)
        remedies += [Stage0Distillation(settings.stage0_distillation, content)] if "classifier" in content else []
    if settings.earlier(task) and not settings.joint:
        remedies += [LearningWithoutForgetting(settings.lwf_weight, model)] if settings.lwf_weight else []
        remedies += [HeterogeneityAware(settings.had_weight, model)] if settings.had_weight else []
        remedies += [DarkExperienceReplay(settings.derpp_weight)] if settings.derpp_weight else []
        remedies += (
            [ElasticWeightConsolidation(settings.ewc_weight, model, fisher)] if settings.ewc_weight and fisher else []
        )
    return remedies
