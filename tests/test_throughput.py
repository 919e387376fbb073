import pytest

from mtl_utils import throughput
from mtl_utils.data import Root
from mtl_utils.settings import PROFILES, TASKS
from mtl_utils.stages import Run


@pytest.mark.parametrize("task", TASKS)
def test_throughput_counts_replayed_images_and_loading(task, tiny_root, tmp_path, monkeypatch):
    seconds = iter([0.1, 0.2] * 2)
    monkeypatch.setattr(throughput, "timed", lambda function: (function(), next(seconds))[1])
    found = throughput.throughput(Run(PROFILES["smoke"], tmp_path, Root(tiny_root, "--data-root")), task, steps=2)
    images = {"seg": 6, "det": 6 + 6, "cls": 10 + 6 + 6}[task]  # all of the tiny set, and 6 of each earlier task
    assert found == pytest.approx({"network": images / 0.1, "loop": images / 0.2, "ratio": 0.5})
