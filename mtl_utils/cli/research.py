"""The commands behind the results: study, log, links, publish.

What they need beyond the core is imported inside the commands, so that training needs no Jupyter and no plotting.
"""

import argparse

from mtl_utils import environment, files
from mtl_utils.prepare.root import find_root
from mtl_utils.settings import get_settings

SEVERAL_SEEDS = [0, 1, 2]  # of the study that asks how much the seed decides


def study_command(options: argparse.Namespace) -> None:
    """Run what is missing of a study; results on photographs belong to the repository, others beside their runs."""
    from mtl_utils.experiments import runner
    from mtl_utils.experiments.results import read_results
    from mtl_utils.plots import studies

    settings = get_settings(options.profile)
    root = find_root(options.data_root)
    folder = environment.runs_folder() / f"study-{settings.profile}-{root.kind}"
    results = folder / "results" if root.is_synthetic else files.STUDY_RESULTS / settings.profile
    seeds = options.seeds or default_seeds(options.what)
    runner.run_study(options.what, settings, root, seeds, folder, results)
    first = runner.base_run(settings, seeds[0], root, folder)
    studies.draw_forgetting(first, results / "forgetting.png")
    print(f"{len(read_results(results))} runs are in {results}")


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


def publish_command(options: argparse.Namespace) -> None:
    """Bring README's results in step with the committed run, or make another run the committed one."""
    from mtl_utils.publish import readme
    from mtl_utils.publish import run as publish_run

    if options.run:
        publish_run.take_over(options.run)
        print(f"metrics, weights, notebooks and figures are those of {options.run}")
    readme.remake_readmes()
    print(f"tables remade in {', '.join(readme.PAGES)}, figures in figures/study/{readme.STUDIED[-1]}/")
