import pytest

from mtl_utils.experiments import benchmark
from mtl_utils.prepare.root import Root
from mtl_utils.run import Run
from mtl_utils.settings import PROFILES
from mtl_utils.tasks import TASKS


@pytest.mark.parametrize("task", TASKS)
def test_throughput_counts_replayed_images_and_loading(task, tiny_root, tmp_path, monkeypatch):
    seconds = iter([0.1, 0.2] * 2)
    monkeypatch.setattr(benchmark, "timed_call", lambda function: (function(), next(seconds))[1])
    found = benchmark.throughput(Run(PROFILES["smoke"], tmp_path, Root(tiny_root, "--data-root")), task, steps=2)
    images = {"seg": 6, "det": 6 + 6, "cls": 10 + 6 + 6}[task]  # all of the tiny set, and 6 of each earlier task
    assert found == pytest.approx({"network": images / 0.1, "loop": images / 0.2, "ratio": 0.5})
