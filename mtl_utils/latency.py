"""How long one image takes, against the assignment's limit."""

import time

import numpy as np
import torch
from torch import nn

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
