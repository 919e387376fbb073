import pytest
from torch import nn

from mtl_utils.experiments import benchmark
from mtl_utils.prepare.root import Root
from mtl_utils.run import Run
from mtl_utils.settings import PROFILES
from mtl_utils.tasks import TASKS


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_throughput_counts_replayed_images_and_loading(task, tiny_root, tmp_path, monkeypatch):
    seconds = iter([0.1, 0.2] * 2)

    def timed(function):
        function()
        return next(seconds)

    monkeypatch.setattr(benchmark, "timed", timed)
    speed = benchmark.throughput(Run(PROFILES["smoke"], tmp_path, Root(tiny_root, "--data-root")), task, steps=2)
    images = {"seg": 6, "det": 6 + 6, "cls": 10 + 6 + 6}[task]  # all of the tiny set, and 6 of each earlier task
    assert (speed.network, speed.loop) == pytest.approx((images / 0.1, images / 0.2))
    assert speed.ratio == pytest.approx(0.5)


def test_latency_leaves_out_the_first_calls_and_counts_milliseconds(monkeypatch):
    """Ten forwards of 1 to 10 ms are measured, after five that are not."""
    shapes = []
    model = nn.Conv2d(3, 1, 1)
    model.register_forward_hook(lambda module, inputs, output: shapes.append(inputs[0].shape))
    seconds = iter(range(1, 11))

    def timed(function):
        function()
        return next(seconds) / 1000

    monkeypatch.setattr(benchmark, "timed", timed)
    latency = benchmark.latency(model, size=32, runs=10, warmup=5)
    assert shapes == [(1, 3, 32, 32)] * 15
    assert latency.median_ms == pytest.approx(5.5) and latency.p95_ms == pytest.approx(9.55)


def test_a_call_is_timed_in_seconds(monkeypatch):
    clock = iter([10.0, 12.5])
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: next(clock))
    assert benchmark.timed(lambda: None) == 2.5
