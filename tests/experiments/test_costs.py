"""What a remedy costs, by hand."""

from dataclasses import replace

import pytest
import torch

from mtl_utils.experiments import costs
from mtl_utils.experiments.plans import EWC, JOINT, LWF, NO_REPLAY, REPLAY, REPLAY_AND_LWF, SINGLE_DET, Plan
from mtl_utils.settings import Settings


def settings_of(plan: Plan) -> Settings:
    return replace(Settings(), **plan.overrides)


def test_bytes_of_all_tensors_are_counted():
    state = {
        "exemplars": {"seg": [{"picture": torch.zeros(100, dtype=torch.uint8), "boxes": torch.zeros(2, 4)}]},
        "stored_logits": {"seg": torch.zeros(3, 5, dtype=torch.float16)},
        "capacity": 240,
    }
    assert costs.tensor_bytes(state) == 100 + 2 * 4 * 4 + 3 * 5 * 2


@pytest.mark.parametrize(
    ("plan", "images", "previous"),
    [(NO_REPLAY, 4, False), (REPLAY, 10, False), (LWF, 8, True), (REPLAY_AND_LWF, 14, True), (EWC, 4, True)],
)
def test_images_of_a_step_and_the_previous_model(plan, images, previous):
    """4 new images, 6 replayed ones, and the teacher's forward of the new ones."""
    settings = settings_of(plan)
    assert costs.images_per_step(settings) == images
    assert costs.needs_previous_model(settings) == previous


@pytest.mark.parametrize("plan", [SINGLE_DET, JOINT])
def test_a_run_of_one_stage_has_no_previous_model(plan):
    settings = replace(settings_of(plan), lwf_weight=1.0)
    assert not costs.needs_previous_model(settings)
