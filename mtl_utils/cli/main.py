"""The command line: python -m mtl_utils COMMAND."""

import argparse
from pathlib import Path

from mtl_utils import files
from mtl_utils.cli.data import check_command, synthetic_command
from mtl_utils.cli.guard import guarded
from mtl_utils.cli.research import pretrain_command, publish_command, study_command
from mtl_utils.cli.run import bench_command, restart_command, run_command, train_command
from mtl_utils.model import WIDTHS
from mtl_utils.prepare import fetch, folds
from mtl_utils.publish import links
from mtl_utils.publish import log as run_log
from mtl_utils.settings import PROFILES


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
        (
            "fetch",
            "build the mini sets from the official sources",
            lambda o: fetch.fetch(o.root or files.PROJECT / "data"),
        ),
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
    log.set_defaults(command=lambda o: run_log.log_run(o.run, o.note))
    study = commands.add_parser("study", help="the runs behind the evidence: baselines, remedies, memory sizes, seeds")
    study.add_argument("--what", choices=("baselines", "remedies", "memory", "seeds"), required=True)
    study.add_argument(
        "--seeds", type=int, nargs="+", help="one run of each kind for every seed (default: 0 1 2 for seeds, else 0)"
    )
    study.add_argument("--profile", choices=PROFILES, help="default: full with a GPU, quick without")
    study.add_argument("--data-root", help="folder of the mini sets (default: MTL_DATA_ROOT, data/, synthetic)")
    study.set_defaults(command=study_command)
    linking = commands.add_parser("links", help="say where the project lies on GitHub: badges, and what Colab clones")
    linking.add_argument("repository", metavar="OWNER/NAME")
    linking.set_defaults(command=lambda o: links.set_address(o.repository))
    publishing = commands.add_parser("publish", help="remake README's results from figures/metrics.json")
    publishing.add_argument("run", nargs="?", type=Path, help="first take over what this run folder holds")
    publishing.set_defaults(command=publish_command)
    return parser
