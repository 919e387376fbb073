"""The commands behind the results: pretrain, study, publish."""

import argparse

from mtl_utils import files
from mtl_utils.plots import studies
from mtl_utils.prepare.root import find_root
from mtl_utils.publish import readme
from mtl_utils.publish import run as publish_run
from mtl_utils.settings import get_settings


def pretrain_command(options: argparse.Namespace) -> None:
    """Run stage 0, or continue it."""
    from mtl_utils.experiments import pretraining

    out = options.out or files.WEIGHTS_FOLDER / f"stage0_{options.widths}.pt"
    about = pretraining.pretrain(options.images, options.widths, options.epochs, out, files.PROJECT / "runs" / "stage0")
    print(f"{out}: Top-1 {about['top1']:.3f} of {about['classes']} classes after {about['minutes']:.0f} minutes")


def study_command(options: argparse.Namespace) -> None:
    """Run what is missing of a study; results on photographs belong to the repository, others to runs/."""
    from mtl_utils.experiments import results as results_module
    from mtl_utils.experiments import runner

    settings, root = get_settings(options.profile), find_root(options.data_root)
    kind = "synthetic" if root.chosen_by == "synthetic" else "real"
    folder = files.PROJECT / "runs" / f"study-{settings.profile}-{kind}"
    results = files.STUDY_RESULTS / settings.profile if kind == "real" else folder / "results"
    seeds = options.seeds or ([0, 1, 2] if options.what == "seeds" else [0])
    runner.run_study(options.what, settings, root, seeds, folder, results)
    studies.draw_forgetting(runner.base_run(settings, seeds[0], root, folder), results / "forgetting.png")
    print(f"{len(results_module.read_results(results))} runs are in {results}")


def publish_command(options: argparse.Namespace) -> None:
    """Bring README's results in step with the committed run, or make another run the committed one."""
    if options.run:
        publish_run.take_over(options.run)
    readme.remake_readmes()
