"""Speeds: milliseconds of one forward, the same beside EfficientNet-B0's, and images a second of the training loop."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models import efficientnet_b0
from torchvision.ops import Conv2dNormActivation

from mtl_utils import files
from mtl_utils.evaluation import predict
from mtl_utils.model import UnifiedModel, place_model
from mtl_utils.remedies.build import make_remedies
from mtl_utils.replay import ReplayBuffer
from mtl_utils.run import Run, build, load_model
from mtl_utils.stages import finalize_model
from mtl_utils.tasks import Task
from mtl_utils.training import Trainer
from mtl_utils.transforms import Batch

LIMIT_MS = 150.0  # one 512 x 512 image, the assignment's rule (for a Colab T4)
SIZE = 512  # pixels of each side of that image
WARMUP_STEPS = 3  # training steps before the measured ones: the first are slow


@dataclass(frozen=True)
class Latency:
    """How long one forward takes."""

    median_ms: float
    p95_ms: float  # 95th percentile


@dataclass(frozen=True)
class Throughput:
    """Images a second in training, replayed ones included."""

    network: float  # on a batch that is there
    loop: float  # with loading and augmentation

    @property
    def ratio(self) -> float:
        """The part of the network's speed that the loop reaches."""
        return self.loop / self.network


def timed(function: Callable[[], object]) -> float:
    """Seconds that a call takes, the GPU's work included."""
    wait_for_gpu()  # else work that was started before would count
    started = time.perf_counter()
    function()
    wait_for_gpu()
    return time.perf_counter() - started


def wait_for_gpu() -> None:
    """Wait until the GPU, if there is one, has done all that it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    elif torch.backends.mps.is_available():
        torch.mps.synchronize()


@torch.inference_mode()
def latency(model: nn.Module, size: int = SIZE, runs: int = 30, warmup: int = 5) -> Latency:
    """Latency of one forward of a batch of 1, (1, 3, size, size), over `runs` calls after `warmup` uncounted ones."""
    device = next(model.parameters()).device
    image = torch.rand(1, 3, size, size, device=device)
    image = image.contiguous(memory_format=torch.channels_last)
    model.eval()
    for _ in range(warmup):
        model(image)
    milliseconds = []
    for _ in range(runs):
        seconds = timed(lambda: model(image))
        milliseconds.append(1000 * seconds)
    return Latency(float(np.median(milliseconds)), float(np.percentile(milliseconds, 95)))


# ---- beside a network that everybody has


class Timings(NamedTuple):
    """Median milliseconds for one image on one thread, measured in turns."""

    ours: float  # letterbox, one forward, and all three answers read
    ours_bfloat16: float
    reference: float  # EfficientNet-B0's features alone
    reference_bfloat16: float

    @property
    def ratio(self) -> float:
        """Ours by the reference, both in float32."""
        return self.ours / self.reference

    @property
    def ratio_bfloat16(self) -> float:
        """Ours in bfloat16 by the reference in float32: what half precision makes of the ratio."""
        return self.ours_bfloat16 / self.reference


def beside_efficientnet_b0(model: nn.Module, size: int = SIZE, rounds: int = 20) -> Timings:
    """Our whole prediction beside the features of torchvision's EfficientNet-B0, on a CPU, batch 1, size x size pixels.

    Both in eval mode with BatchNorm folded, weights and images in channels-last order. All four are timed in each of
    `rounds`, so that whatever else the machine does slows them alike; two rounds before these do not count.
    """
    reference = folded_efficientnet_b0()
    image = torch.randint(0, 256, (3, size, size), dtype=torch.uint8)
    batch = (image[None] / 255).contiguous(memory_format=torch.channels_last)
    in_bfloat16 = partial(torch.autocast, "cpu", torch.bfloat16)
    ways: dict[str, tuple[Callable[[], object], Callable[[], Any]]] = {
        "ours": (lambda: predict(model, [image], size), contextlib.nullcontext),
        "ours_bfloat16": (lambda: predict(model, [image], size), in_bfloat16),
        "reference": (lambda: reference(batch), contextlib.nullcontext),
        "reference_bfloat16": (lambda: reference(batch), in_bfloat16),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with one_thread(), torch.inference_mode():
        for _ in range(rounds + 2):
            for name, (function, precision) in ways.items():
                with precision():
                    seconds[name].append(timed(function))
    medians = {name: 1000 * float(np.median(values[2:])) for name, values in seconds.items()}
    return Timings(**medians)


def trained_model(run: Run) -> UnifiedModel:
    """The committed model, else one as a run begins with: what is read from a trained map costs less time."""
    if files.COMMITTED_WEIGHTS.exists():
        model, _ = load_model(files.COMMITTED_WEIGHTS)
        return model
    model = build(run.settings, run.classes)
    return place_model(finalize_model(model, run.settings), "cpu")


def folded_efficientnet_b0() -> nn.Module:
    """The features of torchvision's EfficientNet-B0 with random weights, ready to be timed."""
    features = efficientnet_b0().features.eval()
    for block in features.modules():
        if isinstance(block, Conv2dNormActivation):
            block[0] = fuse_conv_bn_eval(block[0], block[1])
            block[1] = nn.Identity()
    placed: nn.Module = features.to(memory_format=torch.channels_last)
    return placed


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch inside the `with` block."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


# ---- the training loop


def throughput(run: Run, task: Task, steps: int = 20) -> Throughput:
    """Images a second of one stage: the network alone, and the loop with loading.

    The two are measured in turns, a step each, so that whatever else the machine does slows both alike.
    """
    trainer = fresh_trainer(run, task)
    batches = endless_batches(trainer)
    ready = next(batches)
    for _ in range(WARMUP_STEPS):
        trainer.step(ready)
    network_seconds = []
    loop_seconds = []
    for _ in range(steps):
        network_seconds.append(timed(lambda: trainer.step(ready)))
        loop_seconds.append(timed(lambda: trainer.step(next(batches))))
    images_a_step = sum(len(batch.images) for batch in ready.values())
    network = images_a_step / np.median(network_seconds)
    loop = images_a_step / np.median(loop_seconds)
    return Throughput(float(network), float(loop))


def fresh_trainer(run: Run, task: Task) -> Trainer:
    """A trainer of the stage with a random model and a full buffer."""
    settings = run.settings
    model = build(settings, run.classes)
    model.has_imagenet_trunk = True  # so that the same layers are frozen as in a real run
    buffer = ReplayBuffer(settings.buffer_size)
    for earlier in settings.earlier(task):
        generator = torch.Generator().manual_seed(0)
        buffer.store(run.data(earlier, "train"), generator)
    if buffer.samples:  # a stage before this one has folded BatchNorm
        finalize_model(model, settings)
    remedies = make_remedies(settings, model, task, buffer)
    trainer = Trainer(model, run.data(task, "train"), buffer, settings, run.device, remedies)
    trainer.model.train()
    return trainer


def endless_batches(trainer: Trainer) -> Iterator[dict[Task, Batch]]:
    """The batches of a stage's steps, epoch after epoch."""
    while True:
        for batch in trainer.loader():
            yield {trainer.task: batch} | trainer.replay()
