"""The commands behind the results: study, log, links, publish.

What they need beyond the core is imported inside the commands, so that training needs no Jupyter and no plotting.
"""

import argparse

from mtl_utils import environment, files
from mtl_utils.cli.run import chosen_device
from mtl_utils.prepare.folds import FOLDS
from mtl_utils.prepare.root import cross_fold, find_root
from mtl_utils.settings import get_settings

SEVERAL_SEEDS = [0, 1, 2]  # of the study that asks how much the seed decides


def study_command(options: argparse.Namespace) -> None:
    """Run what is missing of a study; results on photographs belong to the repository, others beside their runs.

    With --check nothing is run: the stored results and the tables made from them are computed again.
    """
    if options.check:
        from mtl_utils.publish.recheck import recheck

        print(recheck())
        return
    from mtl_utils.experiments import runner
    from mtl_utils.experiments.plans import CROSS_VALIDATION
    from mtl_utils.experiments.results import fold_folder, read_results
    from mtl_utils.plots import studies

    chosen_device(options)
    settings = get_settings(options.profile)
    root = find_root(options.data_root)
    folder = environment.runs_folder() / f"study-{settings.profile}-{root.kind}"
    results = folder / "results" if root.is_synthetic else files.STUDY_RESULTS / settings.profile
    seeds = options.seeds or default_seeds(options.what)
    shard = runner.Shard(*options.shard) if options.shard else None
    folds = range(1 + FOLDS) if options.what == CROSS_VALIDATION else [0]
    for fold in folds:
        fold_root = cross_fold(root, folder.parent, fold)
        runs = fold_folder(folder, fold)
        runner.run_study(options.what, settings, fold_root, seeds, runs, fold_folder(results, fold), shard)
        print(f"{len(read_results(fold_folder(results, fold)))} runs are in {fold_folder(results, fold)}")
    first = runner.base_run(settings, seeds[0], root, folder)
    studies.draw_forgetting(first, results / "forgetting.png")


def default_seeds(what: str) -> list[int]:
    """The seeds of a study for which none are named."""
    return SEVERAL_SEEDS if what == "seeds" else [0]


def log_command(options: argparse.Namespace) -> None:
    """Add a line about a run to the log of what was tried."""
    from mtl_utils.publish import log

    log.log_run(options.run, options.note)
    print(f"{files.RUN_LOG} has a line about {options.run.name}")


def links_command(options: argparse.Namespace) -> None:
    """Write the project's address into notebooks and READMEs."""
    from mtl_utils.publish import links, readme

    links.set_address(options.repository)
    print(f"the notebooks and {', '.join(readme.READMES)} name {links.GITHUB}/{options.repository}")


def translate_command(_: argparse.Namespace) -> None:
    """Build the notebooks in Traditional Chinese."""
    from mtl_utils.publish import translate

    for path in translate.build_all():
        print(path.name)


def publish_command(options: argparse.Namespace) -> None:
    """Bring README's results in step with the committed run, or make another run the committed one."""
    from mtl_utils.publish import readme
    from mtl_utils.publish import run as publish_run

    if options.run:
        publish_run.take_over(options.run)
        print(f"metrics, weights, notebooks and figures are those of {options.run}")
    readme.remake_readmes()
    print(f"tables remade in {', '.join(readme.PAGES)}")
