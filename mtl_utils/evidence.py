"""What the studies' summaries say together: retention against single-task baselines, with intervals, and its kin.

R[i, j] is the metric of task j after stage i, b_j the metric of task j learned alone with the same start and budget
(segmentation alone is stage 1). After the last stage, over the tasks:
    retention     R[last, j] / b_j, per task; the 5 % rule asks for .95
    average       mean of R[last, j]
    BWT           mean of R[last, j] - R[j, j] over all but the last task (Lopez-Paz and Ranzato 2017); forgetting < 0
    forgetting    mean of max_i R[i, j] - R[last, j] over all but the last task (Chaudhry et al. 2018)
    gain          mean of R[last, j] / b_j - 1 (multi-task gain, Maninis et al. 2019)
"""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from mtl_utils.intervals import UNIT, interval
from mtl_utils.report import mark, markdown, r_matrix
from mtl_utils.settings import METRIC_NAMES, TASKS, UserError

ALONE = {"seg": "replay", "det": "alone-det", "cls": "alone-cls"}  # the runs whose first stage is a task alone
RULE = 0.95  # retention that the assignment asks for


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
    final, base = (np.array(r["draws"][stage][task], float) for r, stage in ((result, last), (alone, task)))
    ratio = np.divide(final, base, out=np.full_like(final, np.nan), where=base > 0)
    return result["metrics"][last][task][METRIC_NAMES[task]] / baseline, ratio


def alone_values(results: list[dict], seed: int) -> dict[str, float]:
    """The metric of each task learned alone with a seed, as far as it has been run."""
    runs = {task: find(results, name, seed) for task, name in ALONE.items()}
    return {task: r["metrics"][task][task][METRIC_NAMES[task]] for task, r in runs.items() if r}


def pooled(results: list[dict], name: str, task: str) -> tuple[float, float, float, int] | None:
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
    draws = np.mean([final_draws(a, task) - final_draws(b, task) for a, b in pairs], axis=0)
    return float(value), *interval(draws)


def final_draws(result: dict, task: str) -> np.ndarray:
    """The final metric of a run on every draw of images: (draws,)."""
    return np.array(result["draws"][list(result["metrics"])[-1]][task]) / UNIT


def differences_table(results: list[dict], pairs: list[tuple[str, str]]) -> pd.DataFrame:
    """One row a pair of runs: how much higher the first one's final metrics are; a star marks an interval without 0."""
    rows = {f"{one} − {other}": difference_row(results, one, other) for one, other in pairs}
    return pd.DataFrame(rows).T


def difference_row(results: list[dict], one: str, other: str) -> dict[str, str]:
    """One row of the table."""
    found = {METRIC_NAMES[task]: difference(results, one, other, task) for task in TASKS}
    star = {name: " *" * (low > 0 or high < 0) for name, (_, low, high) in found.items()}
    cells = {name: "{:+.3f} [{:+.3f}, {:+.3f}]".format(*numbers) + star[name] for name, numbers in found.items()}
    return {"seeds": str(len(seed_pairs(results, one, other))), **cells}


def finals(results: list[dict], name: str, task: str) -> dict[int, tuple[float, float, float]]:
    """The final metric of a run by its seeds, each with its interval over draws of images."""
    found = {}
    for result in sorted(results, key=lambda r: r["settings"]["seed"]):
        if result["name"] == name:
            last = list(result["metrics"])[-1]
            value = result["metrics"][last][task][METRIC_NAMES[task]]
            found[result["settings"]["seed"]] = (value, *interval(final_draws(result, task)))
    return found


def starts(results: list[dict], name: str, seed: int) -> dict[str, int]:
    """How many epochs of a run lie before each of its stages."""
    result, before = find(results, name, seed), 0
    found = {}
    for stage in result["val"]:
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
    return set(result["changes"]) == {"memory", "selection"}


def memory_sizes(results: list[dict]) -> dict[str, dict[int, str]]:
    """The runs that differ in memory alone: {selection: {stored images a task: name}}; the ends are common to all."""
    names = names_of(results)
    ends = {size: name for size, name in {0: "finetune", 240: "replay"}.items() if name in names}
    found: dict[str, dict[int, str]] = {}
    for result in results:
        if varies_memory(result):
            found.setdefault(result["changes"]["selection"], {})[result["changes"]["memory"]] = result["name"]
    return {way: dict(sorted((runs | ends).items())) for way, runs in sorted((found or {"balanced": {}}).items())}


def same_seeds(results: list[dict], names: Iterable[str]) -> list[dict]:
    """The results of the seeds that all of these runs share: other seeds would make them look unlike by their luck."""
    seeds = [{r["settings"]["seed"] for r in results if r["name"] == name} for name in names]
    return [r for r in results if all(r["settings"]["seed"] in of_name for of_name in seeds)]


def evidence_table(results: list[dict]) -> pd.DataFrame:
    """One row a kind of run: final metrics (mean over seeds), retention with its interval, and the other numbers."""
    rows = {name: table_row(results, name) for name in names_of(results)}
    return pd.DataFrame(rows).T


def seeds_table(results: list[dict], name: str) -> pd.DataFrame:
    """One row a seed of a kind of run, held against the tasks alone of that seed: what a single run would have said."""
    seeds = sorted(r["settings"]["seed"] for r in results if r["name"] == name)
    rows = {seed: table_row([r for r in results if r["settings"]["seed"] == seed], name) for seed in seeds}
    return pd.DataFrame(rows).T.drop(columns="seeds").rename_axis("seed")


def table_row(results: list[dict], name: str) -> dict[str, str]:
    """One row of the table."""
    runs = [r for r in results if r["name"] == name]
    row = {"seeds": str(len(runs))}
    kept = {task: pooled(results, name, task) for task in TASKS}
    for j, task in enumerate(TASKS):
        values = [matrix(r)[-1, j] for r in runs]
        row[METRIC_NAMES[task]] = f"{np.mean(values):.3f}" + (f" ± {np.std(values, ddof=1):.3f}" if runs[1:] else "")
        row[f"{METRIC_NAMES[task]}, % of alone"] = percent(kept[task], len(runs)) if kept[task] else "–"
    row["5 % rule"] = rule(runs, kept)
    row["average"] = f"{np.mean([matrix(r)[-1].mean() for r in runs]):.3f}"
    row["gain, %"] = f"{100 * (np.mean([k[0] for k in kept.values()]) - 1):+.1f}" if all(kept.values()) else "–"
    if all(len(r["metrics"]) == len(TASKS) for r in runs):
        numbers = [forgetting_numbers(r) for r in runs]
        row |= {key: f"{np.mean([n[key] for n in numbers]):+.3f}" for key in ("BWT", "forgetting")}
    return row


def rule(runs: list[dict], kept: dict[str, tuple | None]) -> str:
    """PASS where a kind of run keeps 95 % of every task, of the task alone and of its value at its own stage.

    Nothing is said while a seed lacks one of its baselines: the seeds that have theirs may be the lucky ones.
    """
    if not all(k and k[3] == len(runs) for k in kept.values()):
        return "–"
    diagonals = [np.diag(matrix(r)) for r in runs]
    own = np.mean([matrix(r)[-1] / np.where(d > 0, d, np.nan) for r, d in zip(runs, diagonals, strict=True)], axis=0)
    return mark(all(k[0] >= RULE for k in kept.values()) and not (own < RULE).any())


def percent(kept: tuple[float, float, float, int], runs: int) -> str:
    """Retention in per cent with its interval, and of how many seeds, where not all runs have a baseline."""
    value, low, high, seeds = kept
    of = "" if seeds == runs else f" (of {seeds})"
    # a decimal, since the rule cuts at 95
    return f"{100 * value:.1f} [{100 * low:.0f}, {100 * high:.0f}]{of}"


def evidence_markdown(results: list[dict], words: dict[str, str]) -> str:
    """The table as markdown; `words` translates column names."""
    table = evidence_table(results).fillna("–")
    columns = [words.get(column, column) for column in ("run", *table.columns)]
    rows = [[f"`{name}`", *table.loc[name]] for name in table.index]
    return markdown([columns, ["---"] * len(columns), *rows])
