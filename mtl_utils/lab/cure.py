"""A student's remedy on the network: some epochs of detection from the end of stage 1, beside none and the module's."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import nbformat
import pandas as pd
import torch
from IPython.display import HTML
from torch import Tensor

from mtl_utils.data import Sample
from mtl_utils.evaluation import evaluate
from mtl_utils.experiments.autopsy import IMAGES, begin_stage, mask_score, take_steps
from mtl_utils.files import UserError
from mtl_utils.lab.build import SOLUTION
from mtl_utils.lab.checks import NAMES, Parts, check
from mtl_utils.model import UnifiedModel
from mtl_utils.remedies.distillation import PreviousModelDistillation
from mtl_utils.replay import image_classes
from mtl_utils.run import Run
from mtl_utils.tasks import Task
from mtl_utils.training import Trainer
from mtl_utils.transforms import Batch, collate

STORED = 20  # images in a student's buffer


class StudentDistillation(PreviousModelDistillation):
    """Distillation of segmentation's channels from the network of stage 1, by a student's function."""

    def __init__(self, model: UnifiedModel, distillation: Callable[[Tensor, Tensor], Tensor]):
        super().__init__(1.0, model)
        self.distillation = distillation

    def distance(self, task: Task, student: Tensor, teacher: Tensor) -> Tensor:
        """The student's loss () of logits (B, C, h, w)."""
        return self.distillation(student, teacher)


def compare(run: Run, parts: Parts) -> pd.DataFrame | str:
    """mIoU and mAP@50 after some epochs of detection, a row for each remedy; a sentence where a part is not right yet.

    Stage 1 of the run has to be finished.
    """
    for part in NAMES:
        result = check(part, parts)
        if result.remarks:
            return f"First make part {part} right: {result.remarks[0]}"
    val = run.data("seg", "val").samples[:IMAGES]
    boxes = run.data("det", "val")  # a remedy that keeps the network from learning would keep the masks, too
    before = mask_score(run.model("seg"), val, run.settings.eval_size)
    rows = {}
    for name, trainer in trainers(run, parts):
        *_, after = take_steps(trainer, val, with_replay=bool(trainer.buffer.samples)).values()
        rows[name] = {
            "stored images": len(trainer.buffer.samples.get("seg", [])),
            "mIoU before": before,
            "mIoU after": after,
            "kept": after / before if before else float("nan"),
            "mAP@50 after": evaluate(trainer.model, [boxes], run.settings.eval_size)["det"].value,
        }
    return pd.DataFrame.from_dict(rows, orient="index").round(3)


def our_table() -> HTML:
    """What `compare` returned in the notebook of the solution. Raises UserError where it is stored without outputs."""
    notebook = nbformat.read(SOLUTION, as_version=4)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            table = output.get("data", {}).get("text/html")
            if table and "cure.compare(" in cell.source:
                return HTML(table)
    raise UserError(f"{SOLUTION} holds no table: restore the file that came with the project.")


def trainers(run: Run, parts: Parts) -> Iterator[tuple[str, Trainer]]:
    """The trainers that are compared, by name; all start from the same network.

    Each is made when its turn comes: a new trainer seeds the random numbers of augmentation.
    """
    for name, replays, distils in (
        ("none", False, False),
        ("your replay", True, False),
        ("your distillation", False, True),
        ("both", True, True),
    ):
        trainer = begin_stage(run, "det")
        if replays:
            use_parts(trainer, parts)
        else:
            trainer.buffer.samples.clear()
        if distils:
            trainer.remedies = [StudentDistillation(trainer.model, parts["distillation"])]
        yield name, trainer
    yield "the module's replay", begin_stage(run, "det")


def use_parts(trainer: Trainer, parts: Parts) -> None:
    """Let a trainer store and replay by a student's functions."""
    stored = trainer.buffer.samples["seg"]
    generator = torch.Generator().manual_seed(0)
    chosen = parts["choose"](rarest_classes(stored), STORED, generator)
    trainer.buffer.samples["seg"] = stored.chosen(chosen)

    def make_batch(task: Task, samples: list[Sample]) -> Batch:
        return collate(samples, trainer.transform(task), task)

    def replay() -> dict[Task, Batch]:
        batches: dict[Task, Any] = parts["step_batches"](
            trainer.task, None, trainer.buffer.samples, make_batch, trainer.generator
        )
        return {task: batch for task, batch in batches.items() if task != trainer.task}

    trainer.replay = replay  # type: ignore[method-assign]


def rarest_classes(samples: Sequence[Sample]) -> list[int]:
    """Of each mask the class that the fewest masks hold: a label for each image."""
    classes = [image_classes("seg", target) for _, target in samples]
    counts: Counter[int] = Counter()
    for of_image in classes:
        counts.update(of_image)
    return [min(of_image, key=counts.__getitem__) for of_image in classes]
