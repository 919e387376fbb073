import pytest
import torch
from helpers import SETTINGS, Fixed
from torch import nn
from torchvision.models import efficientnet_b0

from mtl_utils import files
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
    # a batch, at most all of the tiny set, and 6 of each earlier task
    images = {"seg": 6, "det": 4 + 6, "cls": 10 + 6 + 6}[task]
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


def test_all_four_are_timed_in_turns_and_the_first_two_rounds_do_not_count(monkeypatch):
    """Rounds of 1000 ms, which do not count, then of 10 to 40 and 30 to 60 ms."""
    seconds = iter([1.0] * 8 + [0.01, 0.02, 0.03, 0.04] + [0.03, 0.04, 0.05, 0.06])
    shown, threads = [], []
    model, reference = Fixed(), nn.Conv2d(3, 1, 1)
    for network in (model, reference):
        network.register_forward_hook(lambda module, _, __: shown.append((module, torch.is_autocast_enabled("cpu"))))

    def timed(function):
        threads.append(torch.get_num_threads())
        function()
        return next(seconds)

    monkeypatch.setattr(benchmark, "timed", timed)
    monkeypatch.setattr(benchmark, "folded_efficientnet_b0", lambda: reference)
    before = torch.get_num_threads()
    times = benchmark.beside_efficientnet_b0(model, size=64, rounds=2)
    assert times == pytest.approx((20, 30, 40, 50))
    assert times.ratio == pytest.approx(20 / 40) and times.ratio_bfloat16 == pytest.approx(30 / 40)
    assert shown == [(model, False), (model, True), (reference, False), (reference, True)] * 4
    assert set(threads) == {1} and torch.get_num_threads() == before


@torch.no_grad()
def test_the_reference_is_efficientnet_b0_with_batchnorm_folded():
    torch.manual_seed(1)
    expected = efficientnet_b0().features.eval()
    torch.manual_seed(1)
    folded = benchmark.folded_efficientnet_b0()
    images = torch.rand(1, 3, 64, 64)
    assert torch.allclose(folded(images), expected(images), atol=1e-4)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in folded.modules())


def test_the_committed_model_is_timed_where_there_is_one(trained_run, tiny_root, tmp_path, monkeypatch):
    run = Run(SETTINGS, tmp_path, Root(tiny_root, "--data-root"))
    monkeypatch.setattr(files, "COMMITTED_WEIGHTS", trained_run.path("cls"))
    expected = trained_run.model("cls").state_dict()
    for name, value in benchmark.trained_model(run).state_dict().items():
        assert torch.equal(value, expected[name].cpu())
    monkeypatch.setattr(files, "COMMITTED_WEIGHTS", tmp_path / "nowhere.pt")
    model = benchmark.trained_model(run)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in model.modules()) and not model.training
