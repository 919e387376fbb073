"""Whether the input pipeline keeps up: steps on batches that are ready, against the training loop as it runs."""

import time
from collections.abc import Callable

import numpy as np
import torch

from mtl_utils.remedies import make_remedies
from mtl_utils.replay import ReplayBuffer
from mtl_utils.stages import Run, build
from mtl_utils.training import Trainer, finish_stage


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
    times = [(timed(lambda: trainer.step(ready)), timed(lambda: trainer.step(next(batches)))) for _ in range(steps)]
    network, loop = images / np.median(times, axis=0)
    return {"network": float(network), "loop": float(loop), "ratio": float(loop / network)}


def fresh_trainer(run: Run, task: str) -> Trainer:
    """A trainer of the stage with a random model and a full buffer."""
    model, buffer = build(run.settings, run.classes), ReplayBuffer(run.settings.memory)
    model.pretrained = True
    for earlier in run.settings.earlier(task):
        buffer.fill(run.data(earlier, "train"), torch.Generator().manual_seed(0))
    if buffer.samples:
        finish_stage(model, run.settings)
    remedies = make_remedies(run.settings, model, task, {})
    trainer = Trainer(model, run.data(task, "train"), buffer, run.settings, run.device, remedies)
    trainer.model.train()
    return trainer


def endless(trainer: Trainer):
    """Batches of a stage, epoch after epoch."""
    while True:
        for batch in trainer.loader():
            yield {trainer.task: batch} | trainer.replay()


def timed(function: Callable[[], object]) -> float:
    """Seconds that a call takes, the GPU's work included."""
    started = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started
