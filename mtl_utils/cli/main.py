"""The command line: python -m mtl_utils COMMAND."""

import argparse
import re
from functools import partial
from pathlib import Path
from typing import TypeAlias

from mtl_utils.cli.data import check_command, fetch_command, fold_command, pack_command, synthetic_command
from mtl_utils.cli.evaluate import split_name
from mtl_utils.cli.export import export_command
from mtl_utils.cli.guard import guarded
from mtl_utils.cli.lab import grade_command, lab_command
from mtl_utils.cli.research import links_command, log_command, publish_command, study_command, translate_command
from mtl_utils.cli.run import bench_command, restart_command, run_command, train_command
from mtl_utils.experiments.plans import STUDIES
from mtl_utils.prepare.folds import FOLDS
from mtl_utils.run import DEVICES
from mtl_utils.settings import PROFILES

# argparse has no public name for what add_subparsers returns
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

DESCRIPTION = "Train one network on three tasks in sequence, measure what it forgets, and show the results."

TASKS_HELP = "all, or some of seg,det,cls with commas between (default: all)"
DEFAULT_ROOT = "MTL_DATA_ROOT, else data/, else data/synthetic/"  # as in prepare.root.find_root

MAX_SEED = 2**63 - 1

# what is printed after Ctrl-C
CONTINUE = "finished epochs are kept: run again to continue"
CONTINUE_RUN = "finished epochs are kept: continue with the command run"  # restart would begin anew
CONTINUE_TRAINING = "finished epochs are kept: continue with --resume"
CONTINUE_FETCHING = "what is there is kept: run again to continue"


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and carry it out; returns the exit status."""
    options = make_parser().parse_args(arguments)
    return guarded(partial(options.command, options), options.after_stop, options.debug)


def make_parser() -> argparse.ArgumentParser:
    """The parser of python -m mtl_utils."""
    parser = argparse.ArgumentParser(prog="python -m mtl_utils", description=DESCRIPTION)
    parser.set_defaults(after_stop="")
    parser.add_argument("--debug", action="store_true", help="show where in the code a mistake was found")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_run(commands)
    add_restart(commands)
    add_train(commands)
    add_data(commands)
    add_bench(commands)
    add_log(commands)
    add_study(commands)
    add_export(commands)
    add_grade(commands)
    add_lab(commands)
    add_links(commands)
    add_publish(commands)
    add_translate(commands)
    return parser


def recipe_options() -> argparse.ArgumentParser:
    """The options of every command that trains: with which settings, on which data."""
    parent = argparse.ArgumentParser(add_help=False)
    parent.add_argument("--profile", choices=PROFILES, help="default: full with a GPU, quick without")
    parent.add_argument("--data-root", help=f"folder of the mini sets (default: {DEFAULT_ROOT})")
    device = "what computes (default: cuda where there is one, else cpu)"
    parent.add_argument("--device", choices=DEVICES, help=device)
    return parent


def run_options() -> argparse.ArgumentParser:
    """The options of every command that makes a run: its name, settings and data."""
    parent = argparse.ArgumentParser(add_help=False, parents=[recipe_options()])
    parent.add_argument("--name", help="folder below MTL_RUNS or runs/ (default: profile and kind of data)")
    skip = "leave out images that are broken or wrongly labelled, and name them in metrics.json"
    parent.add_argument("--skip-broken", action="store_true", help=skip)
    return parent


def add_run(commands: Commands) -> None:
    """The command run."""
    text = "execute the six notebooks in order; finished stages are not trained again"
    parser = commands.add_parser("run", help=text, parents=[run_options()])
    parser.set_defaults(command=run_command, after_stop=CONTINUE)


def add_restart(commands: Commands) -> None:
    """The command restart."""
    text = "run from the start; the previous run is moved to another folder, not deleted"
    parser = commands.add_parser("restart", help=text, parents=[run_options()])
    parser.set_defaults(command=restart_command, after_stop=CONTINUE_RUN)


def seed_number(text: str) -> int:
    """A seed, for argparse: torch takes 64 bits."""
    number = int(text)
    if not 0 <= number <= MAX_SEED:
        raise argparse.ArgumentTypeError(f"{text} is no number from 0 to {MAX_SEED}")
    return number


def add_train(commands: Commands) -> None:
    """The command train."""
    text = "the three stages without notebooks"
    parser = commands.add_parser("train", help=text, parents=[run_options()])
    parser.add_argument("--resume", action="store_true", help="continue the run of that name where it was stopped")
    seed = "of random weights, order of images, augmentation and replay (default: 0)"
    parser.add_argument("--seed", type=seed_number, default=0, help=seed)
    parser.add_argument("--tasks", default="all", help=TASKS_HELP)
    parser.add_argument("--no-replay", action="store_true", help="train without replay, to see what is then forgotten")
    parser.set_defaults(command=train_command, after_stop=CONTINUE_TRAINING)


def add_data(commands: Commands) -> None:
    """The command data, with commands of its own."""
    parser = commands.add_parser("data", help="check, fetch, pack, render or fold the mini sets")
    data_commands = parser.add_subparsers(required=True)
    add_data_check(data_commands)
    add_data_fetch(data_commands)
    add_data_pack(data_commands)
    add_data_synthetic(data_commands)
    add_data_fold(data_commands)


def root_argument(default: str) -> argparse.ArgumentParser:
    """The argument of the commands on one data root; `default`: which root is meant where none is named."""
    parent = argparse.ArgumentParser(add_help=False)
    parent.add_argument("root", nargs="?", type=Path, help=f"folder of the mini sets (default: {default})")
    return parent


def add_data_check(commands: Commands) -> None:
    """The command data check."""
    text = "verify a root and list every fault"
    parser = commands.add_parser("check", help=text, parents=[root_argument(DEFAULT_ROOT)])
    parser.add_argument("--tasks", default="all", help=TASKS_HELP)
    parser.add_argument(
        "--split", type=split_name, help="check this split alone, such as test (default: train and val)"
    )
    parser.set_defaults(command=check_command)


def add_data_fetch(commands: Commands) -> None:
    """The command data fetch."""
    text = "build the mini sets from the official sources, or from a pack"
    parser = commands.add_parser("fetch", help=text, parents=[root_argument("data/")])
    source = "a pack: a file or a web address (default: the line in data/pack.txt, else the official sources)"
    parser.add_argument("--from", dest="source", metavar="PACK", help=source)
    parser.add_argument("--sha256", help="that the pack must have, as `data pack` printed it")
    parser.set_defaults(command=fetch_command, after_stop=CONTINUE_FETCHING)


def add_data_pack(commands: Commands) -> None:
    """The command data pack."""
    text = "write the three mini sets to one verified zip"
    parser = commands.add_parser("pack", help=text)
    parser.add_argument("out", type=Path, help="zip to make")
    parser.add_argument("root", nargs="?", type=Path, help=f"folder of the mini sets (default: {DEFAULT_ROOT})")
    parser.set_defaults(command=pack_command)


def add_data_synthetic(commands: Commands) -> None:
    """The command data synthetic."""
    text = "render the synthetic mini sets"
    parser = commands.add_parser("synthetic", help=text, parents=[root_argument("data/synthetic/")])
    parser.set_defaults(command=synthetic_command)


def add_data_fold(commands: Commands) -> None:
    """The command data fold."""
    text = "copy the training sets as train and val, to choose settings without val"
    parser = commands.add_parser("fold", help=text)
    parser.add_argument("root", type=Path, help="folder of the mini sets")
    parser.add_argument("out", type=Path, help="folder to make")
    fold = "which quarter of the training images becomes val (default: 0)"
    parser.add_argument("--fold", type=int, choices=range(FOLDS), default=0, help=fold)
    parser.set_defaults(command=fold_command)


def add_bench(commands: Commands) -> None:
    """The command bench."""
    text = "images a second in training: the network only, and with loading"
    parser = commands.add_parser("bench", help=text, parents=[recipe_options()])
    parser.set_defaults(command=bench_command, name=None, skip_broken=False)


def add_log(commands: Commands) -> None:
    """The command log."""
    text = "add a run to figures/runs.csv, the log of what was tried"
    parser = commands.add_parser("log", help=text)
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("note", help="what was tried")
    parser.set_defaults(command=log_command)


def shard_numbers(text: str) -> tuple[int, int]:
    """Index from 0 and number of shards, for argparse, from text such as 2/8."""
    numbers = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if numbers is None or not 1 <= int(numbers[1]) <= int(numbers[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is no share such as 2/8, from 1/8 to 8/8")
    return int(numbers[1]) - 1, int(numbers[2])


def add_study(commands: Commands) -> None:
    """The command study."""
    text = "the runs behind the evidence: baselines, remedies, buffer sizes, seeds"
    parser = commands.add_parser("study", help=text, parents=[recipe_options()])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--what", choices=STUDIES, help="which runs; memory: buffer sizes")
    check = "make no run: compute all stored results and tables again, and compare"
    what.add_argument("--check", action="store_true", help=check)
    seeds = "one run of each kind for every seed (default: 0 1 2 for seeds, else 0)"
    parser.add_argument("--seeds", type=seed_number, nargs="+", help=seeds)
    shard = "this job's share of the runs, such as 2/8 for the second of eight jobs (see examples/study.slurm)"
    parser.add_argument("--shard", type=shard_numbers, help=shard)
    parser.set_defaults(command=study_command, after_stop=CONTINUE)


def add_export(commands: Commands) -> None:
    """The command export."""
    text = "write trained weights as ONNX, for programs without torch"
    parser = commands.add_parser("export", help=text)
    parser.add_argument("weights", type=Path, help="a stageN_*.pt file of a run, or data/weights/three_tasks.pt")
    parser.add_argument("--out", type=Path, help="the file to write (default: beside the weights)")
    int8 = "also write it in eight bits, whose ranges are those of training images"
    parser.add_argument("--int8", action="store_true", help=int8)
    parser.add_argument("--data-root", help=f"folder of the mini sets, for --int8 (default: {DEFAULT_ROOT})")
    parser.set_defaults(command=export_command)


def add_grade(commands: Commands) -> None:
    """The command grade."""
    text = "mark a student's notebook of the lab, part by part"
    parser = commands.add_parser("grade", help=text)
    parser.add_argument("notebook", type=Path, help="the notebook that was handed in")
    parser.set_defaults(command=grade_command)


def add_lab(commands: Commands) -> None:
    """The command lab."""
    text = "build and execute the notebooks of the lab from their source"
    parser = commands.add_parser("lab", help=text)
    parser.set_defaults(command=lab_command)


def add_links(commands: Commands) -> None:
    """The command links."""
    text = "set where the project lies on GitHub: badges, and what Colab clones"
    parser = commands.add_parser("links", help=text)
    parser.add_argument("repository", metavar="OWNER/NAME")
    parser.set_defaults(command=links_command)


def add_translate(commands: Commands) -> None:
    """The command translate."""
    text = "build the notebooks in Traditional Chinese from the English ones and notebooks/zh-TW/*.po"
    parser = commands.add_parser("translate", help=text)
    parser.set_defaults(command=translate_command)


def add_publish(commands: Commands) -> None:
    """The command publish."""
    text = "remake the tables of both READMEs and of the evidence, and the study's figures"
    parser = commands.add_parser("publish", help=text)
    parser.add_argument("run", nargs="?", type=Path, help="first take over what this run folder holds")
    parser.set_defaults(command=publish_command)
