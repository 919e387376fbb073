"""How much is forgotten: the R matrix, the 5 % rule and the closing report.

R[i, j] is the metric of task j after stage i. A task's baseline is R[j, j], its value at the end of its own stage.
"""

import json
from pathlib import Path

import numpy as np

from mtl_utils.files import UserError
from mtl_utils.tasks import METRIC_NAMES, TASKS

TOLERANCE = 0.05  # the assignment's 5 %
LABELS = {"seg": "Seg mIoU", "det": "Det mAP@50", "cls": "Cls Top1 Acc"}  # names in the closing report


def read_metrics(path: Path) -> dict:
    """The contents of a metrics.json. Raises UserError when it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): train first, or name another run.") from error


def r_matrix(metrics: dict) -> np.ndarray:
    """R as (3, 3) float64, stages by row and tasks by column; NaN for what is not learned yet."""
    matrix = np.full((len(TASKS), len(TASKS)), np.nan)
    for i, stage in enumerate(TASKS):
        for task, values in metrics["stages"].get(stage, {}).get("metrics", {}).items():
            matrix[i, TASKS.index(task)] = values[METRIC_NAMES[task]]
    return matrix


def floors(metrics: dict) -> dict[str, float]:
    """What the trivial prediction of each task scores on the same images."""
    return {task: stage["metrics"][task]["floor"] for task, stage in metrics["stages"].items()}


def drops(metrics: dict) -> list[dict]:
    """For each task: baseline, final value, drop (negative for a gain) and whether it passes by both readings of 5 %.

    Raises UserError while a stage is missing.
    """
    matrix = r_matrix(metrics)
    if np.isnan(matrix[-1]).any():
        raise UserError("The forgetting table needs all three stages: run the notebooks 03, 04 and 05 first.")
    floor = floors(metrics)
    return [five_percent_rule(task, matrix[j, j], matrix[-1, j], floor[task]) for j, task in enumerate(TASKS)]


def five_percent_rule(task: str, baseline: float, final: float, floor: float) -> dict:
    """The 5 % rule for one task: in points (final >= baseline - .05) and relative (final >= .95 baseline).

    The relative reading is the stricter one, since no metric exceeds 1; PASS needs both. A task that never rose above
    its trivial floor has nothing to keep and passes neither.
    """
    learned = baseline > floor
    points = learned and final >= baseline - TOLERANCE
    relative = learned and final >= (1 - TOLERANCE) * baseline
    drop = {"baseline": baseline, "final": final, "drop": baseline - final}
    return {"task": task, **drop, "points": bool(points), "relative": bool(relative), "pass": bool(points and relative)}


def verdict_text(passed: bool) -> str:
    """How a verdict is printed."""
    return "✅ PASS" if passed else "❌ FAIL"


def closing_report(metrics: dict) -> str:
    """The report in the form that the assignment shows; PASS is said only by the stricter reading."""
    found = drops(metrics)
    lines = [
        f"Stage{i + 1} best {LABELS[d['task']].split(' ', 1)[1]}: {d['baseline']:.4f}" for i, d in enumerate(found)
    ]
    final = ", ".join(f"{LABELS[d['task']].replace('Top1 ', '')}: {d['final']:.4f}" for d in found)
    lines.append(f"→ Final {final}")
    return "\n".join(lines + [verdict(d) for d in found])


def verdict(d: dict) -> str:
    """The closing report's line about one task."""
    numbers = f"baseline={d['baseline']:.4f}, final={d['final']:.4f}, drop={d['drop']:.4f}"
    return f"{LABELS[d['task']]}: {numbers} → {verdict_text(d['pass'])}"
