"""Two speeds: milliseconds of one forward, and images a second of the training loop."""

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from mtl_utils.remedies.build import make_remedies
from mtl_utils.replay import ReplayBuffer
from mtl_utils.run import Run, build
from mtl_utils.stages import finalize_model
from mtl_utils.training import Trainer

LIMIT_MS = 150.0  # one 512 x 512 image, the assignment's rule (for a Colab T4)
SIZE = 512


@torch.inference_mode()
def latency(model: nn.Module, size: int = SIZE, runs: int = 30, warmup: int = 5) -> dict[str, float]:
    """Median and 95th percentile of one forward with batch 1, in milliseconds, after some that do not count."""
    device = next(model.parameters()).device
    image = torch.rand(1, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    model.eval()
    times = [timed(model, image) for _ in range(warmup + runs)][warmup:]
    return {"median_ms": float(np.median(times)), "p95_ms": float(np.percentile(times, 95))}


def timed(model: nn.Module, image: torch.Tensor) -> float:
    """Milliseconds of one forward, the GPU's work included."""
    wait = torch.cuda.synchronize if image.is_cuda else lambda: None
    wait()
    started = time.perf_counter()
    model(image)
    wait()
    return 1000 * (time.perf_counter() - started)


def throughput(run: Run, task: str, steps: int = 20) -> dict[str, float]:
    """Images a second of one stage, replayed ones included: `network` alone, `loop` with loading, and their ratio.

    The two are measured in turns, a step each, so that whatever else the machine does weighs on both alike.
    """
    trainer = fresh_trainer(run, task)
    batches = endless(trainer)
    ready = next(batches)
    images = sum(len(batch[0]) for batch in ready.values())
    for _ in range(3):
        trainer.step(ready)
    times = [
        (timed_call(lambda: trainer.step(ready)), timed_call(lambda: trainer.step(next(batches)))) for _ in range(steps)
    ]
    network, loop = images / np.median(times, axis=0)
    return {"network": float(network), "loop": float(loop), "ratio": float(loop / network)}


def fresh_trainer(run: Run, task: str) -> Trainer:
    """A trainer of the stage with a random model and a full buffer."""
    model, buffer = build(run.settings, run.classes), ReplayBuffer(run.settings.buffer_size)
    model.has_imagenet_trunk = True
    for earlier in run.settings.earlier(task):
        buffer.store(run.data(earlier, "train"), torch.Generator().manual_seed(0))
    if buffer.samples:
        finalize_model(model, run.settings)
    remedies = make_remedies(run.settings, model, task, {})
    trainer = Trainer(model, run.data(task, "train"), buffer, run.settings, run.device, remedies)
    trainer.model.train()
    return trainer


def endless(trainer: Trainer):
    """Batches of a stage, epoch after epoch."""
    while True:
        for batch in trainer.loader():
            yield {trainer.task: batch} | trainer.replay()


def timed_call(function: Callable[[], object]) -> float:
    """Seconds that a call takes, the GPU's work included."""
    started = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started
