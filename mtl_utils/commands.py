"""The commands: run, restart, train, data check | fetch | synthetic, publish, and the marking command of eval.py."""

import argparse
import os
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path

from mtl_utils import check, fetch, folds, layout, pretrained, publish, report, synthetic, throughput
from mtl_utils.checkpoint import write_json
from mtl_utils.data import Classes, MiniSet, find_root
from mtl_utils.evaluation import evaluate
from mtl_utils.model import WIDTHS
from mtl_utils.settings import METRIC_NAMES, PROFILES, PROJECT, TASK_NAMES, TASKS, UserError, get_settings
from mtl_utils.stages import Run, load_model, run_stage


def guarded(function: Callable[[], int | None]) -> int:
    """Run a command; what the user can mend ends in one sentence on stderr, not in a traceback."""
    sys.stdout.reconfigure(errors="replace")  # a console that cannot show a sign gets a question mark instead
    try:
        return function() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("\nstopped; finished epochs are kept: run again to continue (train: with --resume)", file=sys.stderr)
        return 130
    return 1


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and carry it out; returns the exit status."""
    options = make_parser().parse_args(arguments)
    return guarded(lambda: options.command(options))


def make_parser() -> argparse.ArgumentParser:
    """The parser of python -m mtl_utils."""
    parser = argparse.ArgumentParser(prog="python -m mtl_utils", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="execute the six notebooks in order; finished stages are not trained again")
    run.set_defaults(command=run_command)
    restart = commands.add_parser("restart", help="run from the start; what was there is set aside, not deleted")
    restart.set_defaults(command=restart_command)
    train = commands.add_parser("train", help="the three stages without notebooks")
    train.add_argument("--resume", action="store_true", help="continue the run of that name where it was stopped")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--no-replay", action="store_true", help="the same without replay: watch it forget")
    train.set_defaults(command=train_command)
    for command in (run, restart, train):
        command.add_argument("--name", help="folder below runs/ (default: profile and kind of data)")
        command.add_argument("--profile", choices=PROFILES, help="default: full with a GPU, quick without")
        command.add_argument("--data-root", help="folder of the mini sets (default: MTL_DATA_ROOT, data/, synthetic)")
    data = commands.add_parser("data", help="check, fetch or render the mini sets").add_subparsers(required=True)
    for name, help_, command in (
        ("check", "verify a root and list every fault", check_command),
        ("fetch", "build the mini sets from the official sources", lambda o: fetch.fetch(o.root or PROJECT / "data")),
        ("synthetic", "render the synthetic mini sets", synthetic_command),
    ):
        sub = data.add_parser(name, help=help_)
        sub.add_argument("root", nargs="?", type=Path, help="folder of the mini sets")
        sub.set_defaults(command=command)
    fold = data.add_parser("fold", help="copy the training sets as train and val, to choose settings without val")
    fold.add_argument("root", type=Path, help="folder of the mini sets")
    fold.add_argument("out", type=Path, help="folder to make")
    fold.add_argument("--fold", type=int, choices=range(folds.FOLDS), default=0)
    fold.set_defaults(command=lambda o: folds.write_fold(o.root, o.out, o.fold))
    pretrain = commands.add_parser(
        "pretrain", help="stage 0: warm the backbone on ImageNet pictures; run again to continue"
    )
    pretrain.add_argument("--images", nargs="+", type=Path, required=True, help="class folders, or zip files of them")
    pretrain.add_argument("--widths", choices=WIDTHS, default="mobilenetv2")
    pretrain.add_argument("--epochs", type=int, default=3)
    pretrain.add_argument("--out", type=Path, help="file to write (default: data/weights/stage0_WIDTHS.pt)")
    pretrain.set_defaults(command=pretrain_command)
    bench = commands.add_parser("bench", help="images a second in training: the network alone, and with loading")
    bench.add_argument("--profile", choices=PROFILES, help="default: full with a GPU, quick without")
    bench.add_argument("--data-root", help="folder of the mini sets (default: MTL_DATA_ROOT, data/, synthetic)")
    bench.set_defaults(command=bench_command, name=None)
    log = commands.add_parser("log", help="add runs to figures/runs.csv, the log of what was tried")
    log.add_argument("run", type=Path, help="folder of a run")
    log.add_argument("note", help="what was tried")
    log.set_defaults(command=lambda o: publish.log_run(o.run, o.note))
    study = commands.add_parser("study", help="the runs behind the evidence: baselines, remedies, memory sizes, seeds")
    study.add_argument("--what", choices=("baselines", "remedies", "memory", "seeds"), required=True)
    study.add_argument(
        "--seeds", type=int, nargs="+", help="one run of each kind for every seed (default: 0 1 2 for seeds, else 0)"
    )
    study.add_argument("--profile", choices=PROFILES, help="default: full with a GPU, quick without")
    study.add_argument("--data-root", help="folder of the mini sets (default: MTL_DATA_ROOT, data/, synthetic)")
    study.set_defaults(command=study_command)
    links = commands.add_parser("links", help="say where the project lies on GitHub: badges, and what Colab clones")
    links.add_argument("repository", metavar="OWNER/NAME")
    links.set_defaults(command=lambda o: publish.set_address(o.repository))
    publishing = commands.add_parser("publish", help="remake README's results from figures/metrics.json")
    publishing.add_argument("run", nargs="?", type=Path, help="first take over what this run folder holds")
    publishing.set_defaults(command=publish_command)
    return parser


def open_run(options: argparse.Namespace, **changes) -> Run:
    """The run that the options describe."""
    folder = PROJECT / "runs" / options.name if options.name else None
    return Run(get_settings(options.profile, **changes), folder, find_root(options.data_root))


def run_command(options: argparse.Namespace) -> None:
    """Execute the notebooks into the run's folder."""
    from mtl_utils import notebooks  # here, since marking needs no Jupyter

    run = open_run(options)
    print(run)
    environment = {"MTL_PROFILE": run.settings.profile, "MTL_RUN": str(run.folder)}
    if run.root.chosen_by != "synthetic":
        environment["MTL_DATA_ROOT"] = str(run.root.path)
    os.environ.update(environment)
    notebooks.execute_all(run.folder)
    print(report.closing_report(report.read_metrics(run.folder / "metrics.json")))


def restart_command(options: argparse.Namespace) -> None:
    """Execute the notebooks from the start, all stages included."""
    set_aside(open_run(options).folder)
    run_command(options)


def set_aside(folder: Path) -> None:
    """Rename a run's folder, where there is one, to the first free of NAME-1, NAME-2 and so on."""
    if folder.exists():
        numbered = (folder.with_name(f"{folder.name}-{i}") for i in count(1))
        aside = next(path for path in numbered if not path.exists())
        folder.rename(aside)
        print(f"what was there is in {aside.name}/ now")


def train_command(options: argparse.Namespace) -> None:
    """Train the three stages without notebooks."""
    changes = {"draw": 0} if options.no_replay else {}
    run = open_run(options, seed=options.seed, **changes)
    if any(run.folder.glob("stage*")) and not options.resume:
        raise UserError(f"{run.folder} already holds a run: continue it with --resume, or name another with --name.")
    print(run)
    for task in TASKS:
        result = run_stage(run, task, lambda t: print(epoch_line(t.history[-1], t.settings.epochs[t.task])))
        print(f"stage {TASK_NAMES[task]} done after {result['minutes']:.1f} minutes: {scores_line(result['metrics'])}")
    print(report.closing_report(report.read_metrics(run.folder / "metrics.json")))


def epoch_line(entry: dict, epochs: int) -> str:
    """One line of progress."""
    losses = " ".join(f"{task} {value:.3f}" for task, value in entry["loss"].items())
    val = " ".join(f"{METRIC_NAMES[task]} {value:.3f}" for task, value in entry.get("val", {}).items())
    return f"epoch {entry['epoch']:3d}/{epochs}  {entry['seconds']:5.1f} s  loss {losses}  {val}".rstrip()


def scores_line(metrics: dict[str, dict]) -> str:
    """The metric of each task beside its floor."""
    scores = ((METRIC_NAMES[task], values[METRIC_NAMES[task]], values["floor"]) for task, values in metrics.items())
    return ", ".join(f"{name} {value:.4f} (floor {floor:.4f})" for name, value, floor in scores)


def check_command(options: argparse.Namespace) -> int:
    """Verify a root; the exit status says whether it has faults."""
    return min(check.report(options.root or find_root().path), 1)


def synthetic_command(options: argparse.Namespace) -> None:
    """Render the synthetic sets."""
    root = options.root or PROJECT / "data" / "synthetic"
    synthetic.write_synthetic(root)
    print(f"synthetic mini sets are in {root}")


def pretrain_command(options: argparse.Namespace) -> None:
    """Run stage 0, or continue it."""
    from mtl_utils import stage0

    out = options.out or pretrained.FOLDER / f"stage0_{options.widths}.pt"
    about = stage0.pretrain(options.images, options.widths, options.epochs, out, PROJECT / "runs" / "stage0")
    print(f"{out}: Top-1 {about['top1']:.3f} of {about['classes']} classes after {about['minutes']:.0f} minutes")


def bench_command(options: argparse.Namespace) -> None:
    """Measure every stage's loop against the bare network."""
    run = open_run(options)
    print(run)
    for task in TASKS:
        found = throughput.throughput(run, task)
        speeds = f"{found['network']:.1f} images/s alone, {found['loop']:.1f} in the loop"
        print(f"{TASK_NAMES[task]:15} {speeds}: {found['ratio']:.0%}")


def study_command(options: argparse.Namespace) -> None:
    """Run what is missing of a study; results on photographs belong to the repository, others to runs/."""
    from mtl_utils import study

    settings, root = get_settings(options.profile), find_root(options.data_root)
    kind = "synthetic" if root.chosen_by == "synthetic" else "real"
    folder = PROJECT / "runs" / f"study-{settings.profile}-{kind}"
    results = study.RESULTS / settings.profile if kind == "real" else folder / "results"
    seeds = options.seeds or ([0, 1, 2] if options.what == "seeds" else [0])
    study.run_study(options.what, settings, root, seeds, folder, results)
    publish.draw_forgetting(study.base_run(settings, seeds[0], root, folder), results / "forgetting.png")
    print(f"{len(study.read_results(results))} runs are in {results}")


def publish_command(options: argparse.Namespace) -> None:
    """Bring README's results in step with the committed run, or make another run the committed one."""
    if options.run:
        publish.take_over(options.run)
    publish.remake_readmes()


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
    classes, sizes = Classes.from_dict(content["classes"]), content["settings"]["test_size"]
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
