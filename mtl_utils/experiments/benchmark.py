"""Two speeds: milliseconds of one forward, and images a second of the training loop."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from mtl_utils.remedies.build import make_remedies
from mtl_utils.replay import ReplayBuffer
from mtl_utils.run import Run, build
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
    images_a_step = sum(len(images) for images, _ in ready.values())
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
    remedies = make_remedies(settings, model, task, buffer, run.starting_weights)
    trainer = Trainer(model, run.data(task, "train"), buffer, settings, run.device, remedies)
    trainer.model.train()
    return trainer


def endless_batches(trainer: Trainer) -> Iterator[dict[Task, Batch]]:
    """The batches of a stage's steps, epoch after epoch."""
    while True:
        for batch in trainer.loader():
            yield {trainer.task: batch} | trainer.replay()
