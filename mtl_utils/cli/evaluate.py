"""The marking command of eval.py."""

import argparse
from pathlib import Path

from mtl_utils import layout
from mtl_utils.cli.guard import guarded
from mtl_utils.data import MiniSet
from mtl_utils.evaluation import evaluate
from mtl_utils.files import UserError, write_json
from mtl_utils.prepare.root import find_root
from mtl_utils.run import load_model
from mtl_utils.tasks import TASKS, Classes


def evaluate_command(arguments: list[str] | None = None) -> int:
    """The marking command: mAP, mIoU and Top-1 of a trained model; returns the exit status."""
    parser = argparse.ArgumentParser(prog="eval.py", description="Evaluate a trained model on the mini sets.")
    parser.add_argument("--weights", required=True, type=Path, help="a stageN_*.pt file of a run")
    parser.add_argument("--data_root", "--data-root", dest="data_root", required=True, help="folder of the mini sets")
    parser.add_argument("--tasks", default="all", help="all, or some of seg,det,cls with commas between")
    parser.add_argument("--split", default="val", help="the split to evaluate (default: val)")
    parser.add_argument("--json", type=Path, help="also write all metrics, with per-class tables, to this file")
    options = parser.parse_args(arguments)
    return guarded(lambda: mark(options))


def mark(options: argparse.Namespace) -> None:
    """Evaluate and print; sets that the root does not hold are left out when all tasks are asked for."""
    tasks = chosen_tasks(options.tasks)
    model, content = load_model(options.weights)
    classes, sizes = Classes.from_dict(content["classes"]), content["settings"]["eval_size"]
    root = find_root(options.data_root, tasks)
    present = [task for task in tasks if layout.has_set(root.path, task)]
    if options.tasks != "all" and present != list(tasks):
        raise UserError(f"{root.path} does not hold the sets of {options.tasks}: leave out what is missing.")
    results = {}
    for task in present:
        results[task] = evaluate(model, MiniSet(task, root.path, options.split, classes), sizes[task])
    print_marks(results)
    if options.json:
        write_json(options.json, {"weights": options.weights.name, "split": options.split, "tasks": results})


def chosen_tasks(text: str) -> tuple[str, ...]:
    """The tasks that --tasks names, in the order of the stages."""
    names = TASKS if text == "all" else tuple(text.split(","))
    if unknown := set(names) - set(TASKS):
        raise UserError(f"--tasks names {', '.join(sorted(unknown))}: choose all, or some of {','.join(TASKS)}.")
    return tuple(task for task in TASKS if task in names)


def print_marks(results: dict[str, dict]) -> None:
    """One line a metric, the trivial floor beside it."""
    for task, keys in (("det", ("mAP", "mAP@50")), ("seg", ("mIoU",)), ("cls", ("Top-1",))):
        for key in keys if task in results else ():
            values = results[task]
            print(f"{key + ':':8}{values[key]:.4f}   (floor {values['floor']:.4f}, {values['images']} images)")
