"""The marking command of eval.py."""

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from torch import nn

from mtl_utils import coco, layout
from mtl_utils.cli.guard import guarded
from mtl_utils.data import MiniSet
from mtl_utils.evaluation import Evaluation, TaskMetrics, predict_and_evaluate
from mtl_utils.files import UserError, write_json
from mtl_utils.prepare.root import find_root
from mtl_utils.run import load_model
from mtl_utils.tasks import FOLDERS, TASKS, Classes, Task

PRINTED_ORDER = ("det", "seg", "cls")  # in which the assignment asks for the metrics: mAP, mIoU, Top-1


def evaluate_command(arguments: list[str] | None = None) -> int:
    """The marking command: mAP, mIoU and Top-1 of a trained model; returns the exit status."""
    options = make_parser().parse_args(arguments)
    return guarded(partial(mark, options), debug=options.debug)


def make_parser() -> argparse.ArgumentParser:
    """The parser of eval.py."""
    parser = argparse.ArgumentParser(prog="eval.py", description="Evaluate a trained model on the mini sets.")
    weights = "a stageN_*.pt file of a run, data/weights/three_tasks.pt, or an .onnx file of the command export"
    parser.add_argument("--weights", required=True, type=Path, help=weights)
    # the assignment spells it --data_root
    parser.add_argument("--data_root", "--data-root", dest="data_root", required=True, help="folder of the mini sets")
    parser.add_argument("--tasks", default="all", help="all, or some of seg,det,cls with commas between")
    parser.add_argument("--split", type=split_name, default="val", help="the split to evaluate (default: val)")
    skip = "leave out images that are broken or wrongly labelled; their number is printed beside the result"
    parser.add_argument("--skip-broken", action="store_true", help=skip)
    parser.add_argument("--debug", action="store_true", help="show where in the code a mistake was found")
    parser.add_argument("--json", type=json_file, help="also write all metrics, with per-class tables, to this file")
    return parser


def split_name(text: str) -> str:
    """The name of a split, for argparse: one folder's, else another folder would be taken for it."""
    if not text.strip() or text in (".", "..") or "/" in text or "\\" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is no name of a split, such as val or test")
    return text


def json_file(text: str) -> Path:
    """The name of a file to write, for argparse: a mistake is said before minutes are spent."""
    path = Path(text)
    if not path.name or path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is no name of a file to write")
    # the folders above are made when it is written
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise argparse.ArgumentTypeError(f"no file can be written to {above}")
    return path


def mark(options: argparse.Namespace) -> None:
    """Evaluate, print, and write JSON if that is asked for."""
    tasks = chosen_tasks(options.tasks)
    model, classes, eval_size = open_model(options.weights)
    root = find_root(options.data_root, tasks).path
    present = tasks_to_mark(root, tasks, options.tasks)
    datasets = with_truth([MiniSet(task, root, options.split, classes, options.skip_broken) for task in present])
    say_what_was_mapped(datasets)
    say_what_was_not_checked(datasets)
    say_what_was_left_out(datasets)
    evaluation = predict_and_evaluate(model, datasets, eval_size)
    print_marks(evaluation.metrics, {dataset.task: len(dataset.left_out) for dataset in datasets})
    if options.json:
        write_marks(options.json, options, datasets, evaluation)


def open_model(path: Path) -> tuple[nn.Module, Classes, int]:
    """A model from a checkpoint or from an exported file, its classes, and the side of the input it is evaluated at."""
    if path.suffix != ".onnx":
        model, content = load_model(path)
        return model, Classes.from_dict(content["classes"]), content["settings"]["eval_size"]
    try:
        from mtl_utils.export.onnx_read import OnnxModel  # here, since onnxruntime is an extra
    except ImportError as error:
        raise UserError(f"{path} needs onnxruntime: pip install onnxruntime, or name a .pt file.") from error
    exported = OnnxModel(path)
    return exported, exported.classes, exported.eval_size


def chosen_tasks(text: str) -> tuple[Task, ...]:
    """The tasks that --tasks names, in the order of the stages. Raises UserError for an unknown one."""
    if text == "all":
        return TASKS
    names = text.split(",")
    if "" in names:
        raise UserError(f"--tasks {text!r} has an empty name: choose all, or some of {','.join(TASKS)}.")
    unknown = set(names) - set(TASKS)
    if unknown:
        raise UserError(f"--tasks names {', '.join(sorted(unknown))}: choose all, or some of {','.join(TASKS)}.")
    return tuple(task for task in TASKS if task in names)


def tasks_to_mark(root: Path, tasks: tuple[Task, ...], asked: str) -> list[Task]:
    """Those tasks whose sets the root holds; of "all", each that is missing is named on stderr.

    Raises UserError when a task named in `asked` is not among them.
    """
    present = [task for task in tasks if layout.has_set(root, task)]
    if asked != "all" and present != list(tasks):
        raise UserError(f"{root} does not hold the sets of {asked}: leave out what is missing.")
    for task in tasks:
        if task not in present:
            print(f"{task}: {root} holds no {FOLDERS[task]}: not evaluated", file=sys.stderr)
    return present


def with_truth(datasets: list[MiniSet]) -> list[MiniSet]:
    """The sets that have labels; a line on stderr for each of the others. Raises UserError where none is left."""
    labelled = []
    for dataset in datasets:
        if dataset.has_truth:
            labelled.append(dataset)
        else:
            print(f"{dataset.task}: {dataset.place} has no labels, so there is no metric", file=sys.stderr)
    if not labelled:
        raise UserError(f"{datasets[0].root} has no labels to measure by: name a root or a --split that has some.")
    return labelled


def say_what_was_mapped(datasets: Sequence[MiniSet]) -> None:
    """A line on stderr where a COCO JSON numbers its categories in another way than the one of training."""
    for dataset in datasets:
        if dataset.task != "det":
            continue
        classes = dataset.classes
        trained = dict(zip(classes.det, classes.det_ids, strict=True))
        other = [name for name, key in dataset.coco.category_ids.items() if trained.get(name) != key]
        if other:
            path = dataset.coco.path
            print(
                f"det: {path.name} has other ids or spellings of {', '.join(other)}: matched by name", file=sys.stderr
            )


def say_what_was_not_checked(datasets: Sequence[MiniSet]) -> None:
    """A line on stderr where a COCO JSON has images without a size: boxes of another scale would not be noticed."""
    for dataset in datasets:
        unsized = coco.count_unsized(dataset.coco.photos) if dataset.task == "det" else 0
        if unsized:
            name = dataset.coco.path.name
            print(
                f"det: {name} gives no size of {unsized} images: whether its boxes fit was not checked", file=sys.stderr
            )


def say_what_was_left_out(datasets: Sequence[MiniSet]) -> None:
    """A line on stderr for each image that was left out."""
    for dataset in datasets:
        for sentence in dataset.left_out:
            print(f"{dataset.task}: left out: {sentence}", file=sys.stderr)


def print_marks(results: dict[Task, TaskMetrics], left_out: dict[Task, int]) -> None:
    """One line a metric, detection has two; left_out: the number of faults for which images were left out."""
    for task in PRINTED_ORDER:
        if task not in results:
            continue
        metrics = results[task]
        faults = left_out.get(task, 0)
        if metrics.mean_ap is not None:
            print_mark("mAP", metrics.mean_ap, metrics, faults)
        print_mark(metrics.name, metrics.value, metrics, faults)


def print_mark(name: str, value: float, metrics: TaskMetrics, faults: int) -> None:
    """One metric, beside the score of a trivial prediction."""
    label = f"{name}:"
    note = f", others left out for {faults} fault(s)" if faults else ""
    print(f"{label:8}{value:.4f}   (floor {metrics.floor:.4f}, {metrics.images} images{note})")


def write_marks(path: Path, options: argparse.Namespace, datasets: Sequence[MiniSet], evaluation: Evaluation) -> None:
    """All metrics as JSON, with what was evaluated; detection's with the breakdown of its errors."""
    from mtl_utils.experiments.breakdown import analyse  # here, since printing the metrics does not need it

    tasks = {task: metrics.as_dict() for task, metrics in evaluation.metrics.items()}
    for dataset in datasets:
        if dataset.left_out:
            tasks[dataset.task]["left_out"] = dataset.left_out
        if dataset.task == "det":
            breakdown = analyse(dataset, evaluation.predictions["det"])
            tasks["det"]["breakdown"] = breakdown.as_dict()
    write_json(path, {"weights": options.weights.name, "split": options.split, "tasks": tasks})
