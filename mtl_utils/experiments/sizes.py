"""How the three metrics, and the time of one forward, depend on the side of the input."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor, nn

from mtl_utils.data import MiniSet
from mtl_utils.evaluation import evaluate, predict
from mtl_utils.files import read_json, write_json
from mtl_utils.tasks import METRIC_NAMES, TASKS, Task

SIZES = (256, 320, 384, 448, 512)  # pixels: sides of the square input that are compared
TIMED = 15  # predictions of one image that are timed at each size
WARMUP = 3  # predictions before them, which do not count


@dataclass(frozen=True)
class SizeRow:
    """What one side of the input gives."""

    size: int  # pixels
    values: dict[Task, float]  # the metric of each task
    milliseconds: float  # median for one image: letterbox, one forward, all three answers read


def measure_sizes(model: nn.Module, datasets: Sequence[MiniSet], sizes: Sequence[int] = SIZES) -> list[SizeRow]:
    """Evaluate a model on sets of all tasks at each side of the input, and time one image there."""
    image, _ = datasets[0][0]
    rows = []
    for size in sizes:
        metrics = evaluate(model, datasets, size)
        values = {task: result.value for task, result in metrics.items()}
        rows.append(SizeRow(size, values, median_milliseconds(model, image, size)))
    return rows


def median_milliseconds(model: nn.Module, image: Tensor, size: int) -> float:
    """Median milliseconds of a prediction for one image (3, H, W) uint8."""
    milliseconds = []
    for _ in range(WARMUP + TIMED):
        started = time.perf_counter()
        predict(model, [image], size)  # the answers come back to the CPU, so that a GPU is waited for
        milliseconds.append(1000 * (time.perf_counter() - started))
    return float(np.median(milliseconds[WARMUP:]))


def save_sizes(rows: list[SizeRow], path: Path) -> None:
    """Keep the rows as JSON."""
    write_json(path, {"sizes": [asdict(row) for row in rows]})


def read_sizes(path: Path) -> list[SizeRow]:
    """The inverse of save_sizes. Raises UserError when the file is missing or damaged."""
    content = read_json(path, "execute notebook 06 again")
    return [SizeRow(**row) for row in content["sizes"]]


def size_table(rows: list[SizeRow], chosen: int) -> pd.DataFrame:
    """The rows for display; a star marks the side that the model is evaluated at."""
    table = {}
    for row in rows:
        name = f"{row.size} *" if row.size == chosen else str(row.size)
        table[name] = size_row(row)
    return pd.DataFrame(table).T.rename_axis("input, pixels")


def size_row(row: SizeRow) -> dict[str, Any]:
    """One row of the table as text."""
    text = {METRIC_NAMES[task]: f"{row.values[task]:.3f}" for task in TASKS}
    return text | {"milliseconds": f"{row.milliseconds:.0f}"}
