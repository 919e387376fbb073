"""The notebooks' live checks find a broken stage: proved by breaking one, in the notebooks' own profile for tests."""

from dataclasses import replace

import nbformat
import pytest
import torch
from torchvision import tv_tensors

from mtl_utils import stages
from mtl_utils.experiments.runner import copy_stage_1
from mtl_utils.files import NOTEBOOKS
from mtl_utils.prepare.root import find_root
from mtl_utils.run import Run
from mtl_utils.settings import get_settings
from mtl_utils.stages import run_stage
from mtl_utils.tasks import TASKS

SMOKE = get_settings("smoke")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that does what it should."""
    made = Run(SMOKE, tmp_path_factory.mktemp("right"), find_root())
    for task in TASKS:
        run_stage(made, task)
    return made


def broken(run, folder, **changes) -> Run:
    """A run of the same data with something in its settings broken."""
    return Run(replace(SMOKE, **changes), folder, run.root)


@pytest.mark.parametrize(("number", "task"), list(enumerate(TASKS, 3)))
def test_a_stage_as_it_should_be_passes_the_check_that_its_notebook_makes(run, number, task):
    stages.assert_learned(run.result(task), task)
    (path,) = NOTEBOOKS.glob(f"0{number}_*.ipynb")
    sources = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert sum(f'stages.assert_learned(result, "{task}")' in source for source in sources) == 1


def test_learning_rate_zero_is_found(run, tmp_path):
    still = broken(run, tmp_path, lr=dict.fromkeys(TASKS, 0.0))
    with pytest.raises(AssertionError, match="did not fall"):
        stages.assert_learned(run_stage(still, "seg"), "seg")


@pytest.mark.parametrize("changes", [{"replay_per_task": 0}, {"replay_weight": 0.0}])
def test_replay_that_is_dropped_is_found(run, tmp_path, changes):
    forgetful = broken(run, tmp_path, epochs=SMOKE.epochs | {"det": 1}, **changes)
    copy_stage_1(forgetful, run)  # in which nothing is replayed anyway
    with pytest.raises(AssertionError, match="seg was not replayed"):
        stages.assert_learned(run_stage(forgetful, "det"), "det")


def shuffle_masks(run: Run) -> None:
    """Give every training mask other class numbers."""
    dataset = run.data("seg", "train")
    shuffled = []
    for image, target in dataset.samples:
        table = torch.arange(256, dtype=torch.uint8)
        table[:21] = torch.randperm(21).byte()
        shuffled.append((image, {"mask": tv_tensors.Mask(table[target["mask"].as_subclass(torch.Tensor).long()])}))
    dataset.samples = shuffled


def test_shuffled_labels_are_found(run, tmp_path):
    confused = broken(run, tmp_path)
    shuffle_masks(confused)
    with pytest.raises(AssertionError, match=r"did not fall|floor"):
        stages.assert_learned(run_stage(confused, "seg"), "seg")
