"""The named runs of each study: what each one changes in the profile's settings."""

from dataclasses import dataclass, field
from itertools import product
from typing import Any

from mtl_utils.settings import Settings
from mtl_utils.tasks import TASKS, Task


@dataclass(frozen=True)
class Plan:
    """One run of a study: its name and what it changes in the profile's settings."""

    name: str
    overrides: dict[str, Any] = field(default_factory=dict)


REPLAY = Plan("replay")  # the default, and the run whose stage 1 the others share
NO_REPLAY = Plan("no-replay", {"replay_per_task": 0})
# plain fine-tuning, the lower bound; the trunk is folded in every run, since its statistics are ImageNet's
NAIVE = Plan(
    "naive",
    {"replay_per_task": 0, "freeze_trunk": False, "fold_batchnorm": False, "copy_shared_classes": False},
)
# all tasks at once: the upper bound
JOINT = Plan("joint", {"joint": True})

# a task learned alone is the baseline of retention; stage 1 of the default is segmentation alone
SINGLE_DET = Plan("single-det", {"tasks": ["det"]})
SINGLE_CLS = Plan("single-cls", {"tasks": ["cls"]})
SINGLE_TASK: dict[Task, Plan] = {"seg": REPLAY, "det": SINGLE_DET, "cls": SINGLE_CLS}

# the default without one part of its recipe
ABLATIONS = [
    Plan("no-freezing", {"freeze_trunk": False}),
    Plan("no-frozen-neck", {"freeze_neck": dict.fromkeys(TASKS, False)}),
    Plan("no-folding", {"fold_batchnorm": False}),
    Plan("no-copied-classes", {"copy_shared_classes": False}),
    Plan("no-boxes-from-masks", {"boxes_from_masks": False}),
]

LWF = Plan("lwf", {"replay_per_task": 0, "lwf_weight": 1.0})
HAD = Plan("had", {"replay_per_task": 0, "had_weight": 3.0})  # the weight of the published code
EWC = Plan("ewc", {"replay_per_task": 0, "ewc_weight": 100.0})
DERPP = Plan("der", {"derpp_weight": 0.5})
REPLAY_AND_LWF = Plan("replay+lwf", {"lwf_weight": 1.0})

# stored images a task: runs that change nothing else lie between the two ends
BUFFER_SIZES = (10, 20, 60)
BUFFER_ENDS = {0: NO_REPLAY, Settings().buffer_size: REPLAY}
SELECTIONS = ("balanced", "random", "herding")
SMALL_BUFFERS = [
    Plan(f"memory{size}-{selection}", {"buffer_size": size, "exemplar_selection": selection})
    for size, selection in product(BUFFER_SIZES, SELECTIONS)
]
# ten stored images beside a teacher
TEN_AND_LWF = Plan("memory10-lwf", {"buffer_size": 10, "lwf_weight": 1.0})
# the same with fewer of them in a step, so that the model does not overfit to them
TEN_AND_LWF_BY_TWOS = Plan("memory10-lwf-draw2", {"buffer_size": 10, "lwf_weight": 1.0, "replay_per_task": 2})

CROSS_VALIDATION = "cross-validation"  # the study that runs on every fold
STUDIES: dict[str, list[Plan]] = {
    "baselines": [REPLAY, NO_REPLAY, NAIVE, SINGLE_DET, SINGLE_CLS, JOINT],
    "ablations": [REPLAY, *ABLATIONS],
    "remedies": [REPLAY, NO_REPLAY, LWF, HAD, EWC, DERPP, REPLAY_AND_LWF],
    "memory": [REPLAY, NO_REPLAY, *SMALL_BUFFERS, TEN_AND_LWF, TEN_AND_LWF_BY_TWOS],
    "seeds": [REPLAY, SINGLE_DET, SINGLE_CLS],
    CROSS_VALIDATION: [REPLAY, SINGLE_DET, SINGLE_CLS, NO_REPLAY],
}
