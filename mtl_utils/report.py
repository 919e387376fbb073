"""From metrics.json to tables: the stage x task matrix, forgetting, the 5 % rule and the closing report.

R[i, j] is the metric of task j after stage i. A task's baseline is R[j, j], its value at the end of its own stage.
"""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd

from mtl_utils.settings import METRIC_NAMES, TASKS, UserError

TOLERANCE = 0.05  # the assignment's 5 %
FALL = 0.93  # part of its first training loss that a task's last may be: an epoch without learning differs by less
MARGIN = 1.25  # times its floor that a task must score after its stage
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


def stage_table(metrics: dict) -> pd.DataFrame:
    """The R matrix with the trivial floors, three digits, for display."""
    columns = [METRIC_NAMES[task] for task in TASKS]
    rows = [f"after stage {i + 1}" for i in range(len(TASKS))]
    table = pd.DataFrame(r_matrix(metrics), index=rows, columns=columns)
    floor = floors(metrics)
    table.loc["trivial floor"] = [floor.get(task, np.nan) for task in TASKS]
    return table.map(lambda v: "" if np.isnan(v) else f"{v:.3f}")


def assert_learned(result: dict, task: str) -> None:
    """Assert of a finished stage what a broken one would miss, in any profile: a sentence says what is missing."""
    first, last = (result["history"][i]["loss"] for i in (0, -1))
    for earlier in TASKS[: TASKS.index(task)]:
        assert last.get(earlier, 0) > 0, f"{earlier} was not replayed: see Settings.draw and Settings.replay_weight"
    assert last[task] < FALL * first[task], f"{task}: the training loss did not fall, so nothing was learned"
    assert task != "cls" or last[task] < math.log(10), "cls: the training loss is no better than guessing among ten"
    for name, values in result["metrics"].items():
        assert values[METRIC_NAMES[name]] > MARGIN * values["floor"], f"{name} scores no better than its floor"


def drops(metrics: dict) -> list[dict]:
    """For each task: baseline, final value, drop (negative for a gain) and whether it passes by both readings of 5 %.

    Raises UserError while a stage is missing.
    """
    matrix = r_matrix(metrics)
    if np.isnan(matrix[-1]).any():
        raise UserError("The forgetting table needs all three stages: run the notebooks 03, 04 and 05 first.")
    floor = floors(metrics)
    return [judge(task, matrix[j, j], matrix[-1, j], floor[task]) for j, task in enumerate(TASKS)]


def judge(task: str, baseline: float, final: float, floor: float) -> dict:
    """The 5 % rule for one task: in points (final >= baseline - .05) and relative (final >= .95 baseline).

    The relative reading is the stricter one, since no metric exceeds 1; PASS needs both. A task that never rose above
    its trivial floor has nothing to keep and passes neither.
    """
    learned = baseline > floor
    points = learned and final >= baseline - TOLERANCE
    relative = learned and final >= (1 - TOLERANCE) * baseline
    drop = {"baseline": baseline, "final": final, "drop": baseline - final}
    return {"task": task, **drop, "points": bool(points), "relative": bool(relative), "pass": bool(points and relative)}


def forgetting_table(metrics: dict) -> pd.DataFrame:
    """The drops for display, with both readings of the 5 % rule."""
    rows = {
        METRIC_NAMES[d["task"]]: {
            "baseline": f"{d['baseline']:.4f}",
            "final": f"{d['final']:.4f}",
            "drop": f"{d['drop']:+.4f}",
            "drop, % of baseline": f"{100 * d['drop'] / d['baseline']:+.1f}" if d["baseline"] else "-",
            "within 5 points": mark(d["points"]),
            "within 5 % of baseline": mark(d["relative"]),
        }
        for d in drops(metrics)
    }
    return pd.DataFrame(rows).T


def mark(passed: bool) -> str:
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
    return f"{LABELS[d['task']]}: {numbers} → {mark(d['pass'])}"


def results_markdown(metrics: dict, alone: dict[str, float], header: list[str]) -> str:
    """The README's results table under a header of eight words.

    The baseline of drop and verdict is the larger of a task's value at its own stage and what it reached learned alone.
    """
    rows = [header, ["---"] * len(header)]
    for own in drops(metrics):
        task, floor = own["task"], floors(metrics)[own["task"]]
        d = judge(task, max(own["baseline"], alone.get(task, 0.0)), own["final"], floor)
        kept = d["final"] / d["baseline"] if d["baseline"] else 0.0
        single = f"{alone[task]:.3f}" if task in alone else "–"
        values = [f"{own['baseline']:.3f}", f"{d['final']:.3f}", f"{d['drop']:+.3f}", f"{100 * kept:.0f} %"]
        rows.append([METRIC_NAMES[task], f"{floor:.3f}", single, *values, mark(d["pass"])])
    return markdown(rows)


def markdown(rows: list[list[str]]) -> str:
    """Rows of a table, the first two its header and rule, as markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
