"""How much is forgotten: the R matrix, the 5 % rule, the closing report, and the numbers of continual learning.

R[i, j] is the metric of task j after stage i. A task's baseline is the larger of R[j, j], its value at the end of its
own stage, and of what it reaches learned alone, where that has been run: a single run knows the first only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mtl_utils.evaluation import StageMetrics
from mtl_utils.files import UserError
from mtl_utils.tasks import TASKS, Task

TOLERANCE = 0.05  # the assignment's 5 %

# names in the closing report: at a task's own stage, in the line of final values, and before the verdict
STAGE_LABELS = {"seg": "mIoU", "det": "mAP@50", "cls": "Top1 Acc"}
FINAL_LABELS = {"seg": "Seg mIoU", "det": "Det mAP@50", "cls": "Cls Acc"}
VERDICT_LABELS = {"seg": "Seg mIoU", "det": "Det mAP@50", "cls": "Cls Top1 Acc"}


def r_matrix(metrics: StageMetrics) -> np.ndarray:
    """R as (3, 3) float64, stages by row and tasks by column; NaN for what is not learned yet."""
    # float64, as the metrics are
    size = len(TASKS)
    matrix = np.full((size, size), np.nan)  # (stages, tasks)
    for stage, of_tasks in metrics.items():
        for task, result in of_tasks.items():
            row = TASKS.index(stage)
            column = TASKS.index(task)
            matrix[row, column] = result.value
    return matrix


def floors(metrics: StageMetrics) -> dict[Task, float]:
    """What the trivial prediction of each task scores on the same images."""
    # a floor depends on the images alone, so that any stage could give it; a task's own stage always has it
    return {stage: of_tasks[stage].floor for stage, of_tasks in metrics.items()}


@dataclass(frozen=True)
class Drop:
    """What became of one task: its baseline, its final value, and the 5 % rule in both readings."""

    task: Task
    baseline: float  # a metric in [0, 1], as final and floor
    final: float
    floor: float  # what the trivial prediction scores

    @property
    def drop(self) -> float:
        """Baseline minus final value: negative for a gain."""
        return self.baseline - self.final

    @property
    def learned(self) -> bool:
        """Whether the baseline is above the trivial floor; otherwise there is nothing to keep."""
        return self.baseline > self.floor

    @property
    def within_points(self) -> bool:
        """The rule in points: final >= baseline - .05."""
        least = self.baseline - TOLERANCE
        return self.learned and self.final >= least

    @property
    def within_relative(self) -> bool:
        """The rule relative to the baseline: final >= .95 baseline. The stricter one, since no metric exceeds 1."""
        least = (1 - TOLERANCE) * self.baseline
        return self.learned and self.final >= least

    @property
    def passed(self) -> bool:
        """PASS needs both readings."""
        return self.within_points and self.within_relative


def five_percent_rule(task: Task, final: float, baselines: Sequence[float], floor: float) -> Drop:
    """The 5 % rule for one task, against the largest of its baselines.

    A task that never rose above its trivial floor has nothing to keep and fails.
    """
    strictest = max(baselines)  # whoever beats the larger one beats both
    return Drop(task=task, baseline=strictest, final=final, floor=floor)


def drops(metrics: StageMetrics) -> list[Drop]:
    """For each task the rule against its value at the end of its own stage.

    Raises UserError while a stage is missing.
    """
    matrix = r_matrix(metrics)
    # the last row is whole only after the last stage
    if np.isnan(matrix[-1]).any():
        raise UserError("The forgetting table needs all three stages: run the notebooks 03, 04 and 05 first.")
    floor = floors(metrics)
    results = []
    for j, task in enumerate(TASKS):
        own = float(matrix[j, j])  # right after the task was learned
        final = float(matrix[-1, j])  # after all stages
        results.append(five_percent_rule(task, final, [own], floor[task]))
    return results


def verdict_text(passed: bool) -> str:
    """How a verdict is printed."""
    return "✅ PASS" if passed else "❌ FAIL"


def closing_report(metrics: StageMetrics) -> str:
    """The report in the form that the assignment shows, against each task's own stage; PASS as in `Drop`."""
    results = drops(metrics)
    lines = []
    # the wording is the assignment's own
    for number, drop in enumerate(results, 1):
        label = STAGE_LABELS[drop.task]
        lines.append(f"Stage{number} best {label}: {drop.baseline:.4f}")
    finals = [f"{FINAL_LABELS[drop.task]}: {drop.final:.4f}" for drop in results]
    lines.append(f"→ Final {', '.join(finals)}")
    lines += [verdict_line(drop) for drop in results]
    return "\n".join(lines)


def verdict_line(drop: Drop) -> str:
    """The closing report's line about one task."""
    label = VERDICT_LABELS[drop.task]
    before = f"baseline={drop.baseline:.4f}, final={drop.final:.4f}"
    verdict = verdict_text(drop.passed)
    return f"{label}: {before}, drop={drop.drop:.4f} → {verdict}"


def forgetting_numbers(matrix: np.ndarray) -> dict[str, float]:
    """Two numbers of continual learning from an R matrix (3, 3), means over all tasks but the last.

    BWT         R[last, j] - R[j, j], backward transfer (D. Lopez-Paz and M. Ranzato, NeurIPS 2017): below 0 is loss
    forgetting  max of R[i, j] over the stages i before the last - R[last, j]: above 0 is loss, below 0 is gain
                (A. Chaudhry et al., "Riemannian Walk for Incremental Learning", ECCV 2018, section 3)
    """
    earlier = slice(len(TASKS) - 1)  # the last task has had no time to be forgotten
    own = np.diag(matrix)  # (3,), of each task right after its own stage
    final = matrix[-1]
    best_before = np.nanmax(matrix[:-1, earlier], axis=0)  # (2,), of each earlier task before the last stage
    transfer = (final - own)[earlier]
    lost = best_before - final[earlier]
    return {"BWT": float(transfer.mean()), "forgetting": float(lost.mean())}
