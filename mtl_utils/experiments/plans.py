"""The named runs of each study: what each one changes in the profile's settings."""

from dataclasses import dataclass, field
from itertools import product


@dataclass(frozen=True)
class Plan:
    """One run of a study: its name and what it changes in the profile's settings."""

    name: str
    overrides: dict = field(default_factory=dict)


REPLAY = Plan("replay")  # the default, and the run whose stage 1 the others share
NO_REPLAY = Plan("no-replay", {"replay_per_task": 0})
NAIVE = Plan(
    "naive", {"replay_per_task": 0, "stage0_distillation": 0.0, "freeze_trunk": False}
)  # no remedy at all: the lower bound
ALONE = [Plan("single-det", {"tasks": ["det"]}), Plan("single-cls", {"tasks": ["cls"]})]
MEMORIES = [
    Plan(f"memory{size}-{selection}", {"buffer_size": size, "exemplar_selection": selection})
    for size, selection in product((10, 20, 60), ("balanced", "random", "herding"))
]
TEN_AND_TEACHER = [
    Plan("memory10-lwf", {"buffer_size": 10, "lwf_weight": 1.0}),
    Plan(
        "memory10-lwf-draw2", {"buffer_size": 10, "lwf_weight": 1.0, "replay_per_task": 2}
    ),  # not to learn ten by heart
]
STUDIES = {
    "baselines": [REPLAY, NO_REPLAY, NAIVE, *ALONE, Plan("joint", {"joint": True})],
    "remedies": [
        REPLAY,
        NO_REPLAY,
        Plan("lwf", {"replay_per_task": 0, "lwf_weight": 1.0}),
        Plan("had", {"replay_per_task": 0, "had_weight": 1.0}),
        Plan("ewc", {"replay_per_task": 0, "ewc_weight": 100.0}),
        Plan("der", {"derpp_weight": 0.5}),
        Plan("replay+lwf", {"lwf_weight": 1.0}),
    ],
    "memory": [REPLAY, NO_REPLAY, *MEMORIES, *TEN_AND_TEACHER],
    "seeds": [REPLAY, *ALONE],
}
