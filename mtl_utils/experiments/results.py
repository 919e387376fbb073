"""The evidence: named sets of runs that differ in one thing each, run where they are missing, one JSON a run.

All runs of a seed share the segmentation of stage 1, which nothing that is compared here touches: they begin with a
copy of it, and with a replay buffer filled their own way.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from mtl_utils.experiments.bootstrap import STORED_SCALE, interval
from mtl_utils.files import UserError
from mtl_utils.forgetting import r_matrix
from mtl_utils.tasks import METRIC_NAMES, TASKS


def read_results(folder: Path) -> list[dict]:
    """The summaries of all runs of a profile."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]


ALONE = {"seg": "replay", "det": "single-det", "cls": "single-cls"}  # the runs whose first stage is a task alone
RETENTION_RULE = 0.95  # retention that the assignment asks for


def find(results: list[dict], name: str, seed: int) -> dict | None:
    """The summary of one run, None where it has not been run."""
    return next((r for r in results if r["name"] == name and r["settings"]["seed"] == seed), None)


def matrix(result: dict) -> np.ndarray:
    """The R matrix (3, 3) of a run, NaN where a task was not measured."""
    return r_matrix({"stages": {stage: {"metrics": tasks} for stage, tasks in result["metrics"].items()}})


def retention(results: list[dict], result: dict, task: str) -> tuple[float, np.ndarray] | None:
    """Final metric over the single-task baseline of the same seed, and the same on every draw of images (draws,).

    Both are read on the same draws (paired). None without a baseline; a draw in which the baseline is 0 is NaN.
    """
    alone = find(results, ALONE[task], result["settings"]["seed"])
    last = list(result["metrics"])[-1]
    if alone is None or task not in result["metrics"][last]:
        return None
    baseline = alone["metrics"][task][task][METRIC_NAMES[task]]
    final, base = (np.array(r["bootstrap_draws"][stage][task], float) for r, stage in ((result, last), (alone, task)))
    ratio = np.divide(final, base, out=np.full_like(final, np.nan), where=base > 0)
    return result["metrics"][last][task][METRIC_NAMES[task]] / baseline, ratio


def alone_values(results: list[dict], seed: int) -> dict[str, float]:
    """The metric of each task learned alone with a seed, as far as it has been run."""
    runs = {task: find(results, name, seed) for task, name in ALONE.items()}
    return {task: r["metrics"][task][task][METRIC_NAMES[task]] for task, r in runs.items() if r}


def mean_retention(results: list[dict], name: str, task: str) -> tuple[float, float, float, int] | None:
    """Mean retention of a run over its seeds, the interval of that mean over draws of images, and how many seeds."""
    found = [retention(results, r, task) for r in results if r["name"] == name]
    found = [pair for pair in found if pair is not None]
    if not found:
        return None
    draws = np.mean([draws for _, draws in found], axis=0)
    return float(np.mean([value for value, _ in found])), *interval(draws[~np.isnan(draws)]), len(found)


def seed_pairs(results: list[dict], one: str, other: str) -> list[tuple[dict, dict]]:
    """The runs of two kinds with the same seed. Raises UserError where there is none."""
    pairs = [(a, find(results, other, a["settings"]["seed"])) for a in results if a["name"] == one]
    pairs = [(a, b) for a, b in pairs if b]
    if not pairs:
        raise UserError(f"There is no seed that both {one} and {other} were run with: see `python -m mtl_utils study`.")
    return pairs


def difference(results: list[dict], one: str, other: str, task: str) -> tuple[float, float, float]:
    """How much higher the final metric of one run is than another's, and the interval of that, in the metric's units.

    The mean over the seeds that both have, on the same draws of images (paired). Raises UserError where there is none.
    """
    pairs = seed_pairs(results, one, other)
    index = TASKS.index(task)
    value = np.mean([matrix(a)[-1, index] - matrix(b)[-1, index] for a, b in pairs])
    draws = np.mean([final_resamples(a, task) - final_resamples(b, task) for a, b in pairs], axis=0)
    return float(value), *interval(draws)


def final_resamples(result: dict, task: str) -> np.ndarray:
    """The final metric of a run on every draw of images: (draws,)."""
    return np.array(result["bootstrap_draws"][list(result["metrics"])[-1]][task]) / STORED_SCALE


def final_scores(results: list[dict], name: str, task: str) -> dict[int, tuple[float, float, float]]:
    """The final metric of a run by its seeds, each with its interval over draws of images."""
    found = {}
    for result in sorted(results, key=lambda r: r["settings"]["seed"]):
        if result["name"] == name:
            last = list(result["metrics"])[-1]
            value = result["metrics"][last][task][METRIC_NAMES[task]]
            found[result["settings"]["seed"]] = (value, *interval(final_resamples(result, task)))
    return found


def stage_offsets(results: list[dict], name: str, seed: int) -> dict[str, int]:
    """How many epochs of a run lie before each of its stages."""
    result, before = find(results, name, seed), 0
    found = {}
    for stage in result["val_curve"]:
        found[stage] = before
        before += result["settings"]["epochs"][stage]
    return found


def forgetting_numbers(result: dict) -> dict[str, float]:
    """BWT and forgetting of a run with all three stages."""
    r = matrix(result)
    earlier = range(len(TASKS) - 1)
    return {
        "BWT": float(np.mean([r[-1, j] - r[j, j] for j in earlier])),
        "forgetting": float(np.mean([np.nanmax(r[:, j]) - r[-1, j] for j in earlier])),
    }


def names_of(results: list[dict]) -> list[str]:
    """The names of all runs that measured every task: the default first, the others from the best average down."""
    averages: dict[str, list[float]] = {}
    for result in results:
        if not np.isnan(matrix(result)[-1]).any():
            averages.setdefault(result["name"], []).append(matrix(result)[-1].mean())
    return sorted(averages, key=lambda name: (name != "replay", -np.mean(averages[name])))


def remedies(results: list[dict]) -> list[str]:
    """The names of the runs that differ in more than the size of the memory, and of those with and without any."""
    pure = {r["name"] for r in results if varies_memory(r)}
    return [name for name in names_of(results) if name not in pure]


def varies_memory(result: dict) -> bool:
    """Whether a run changes nothing but how many images are stored, and which."""
    return set(result["overrides"]) == {"buffer_size", "exemplar_selection"}


def memory_sizes(results: list[dict]) -> dict[str, dict[int, str]]:
    """The runs that differ in memory alone: {selection: {stored images a task: name}}; the ends are common to all."""
    names = names_of(results)
    ends = {size: name for size, name in {0: "no-replay", 240: "replay"}.items() if name in names}
    found: dict[str, dict[int, str]] = {}
    for result in results:
        if varies_memory(result):
            found.setdefault(result["overrides"]["exemplar_selection"], {})[result["overrides"]["buffer_size"]] = (
                result["name"]
            )
    return {way: dict(sorted((runs | ends).items())) for way, runs in sorted((found or {"balanced": {}}).items())}


def same_seeds(results: list[dict], names: Iterable[str]) -> list[dict]:
    """The results of the seeds that all of these runs share: other seeds would make them look unlike by their luck."""
    seeds = [{r["settings"]["seed"] for r in results if r["name"] == name} for name in names]
    return [r for r in results if all(r["settings"]["seed"] in of_name for of_name in seeds)]
