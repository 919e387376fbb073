"""Tables of results: the stage by task matrix, the drops, and the runs of a study, all for display."""

import numpy as np
import pandas as pd

from mtl_utils.experiments.results import (
    RETENTION_RULE,
    difference,
    forgetting_numbers,
    matrix,
    mean_retention,
    names_of,
    seed_pairs,
)
from mtl_utils.forgetting import drops, floors, r_matrix, verdict_text
from mtl_utils.tasks import METRIC_NAMES, TASKS


def stage_table(metrics: dict) -> pd.DataFrame:
    """The R matrix with the trivial floors, three digits, for display."""
    columns = [METRIC_NAMES[task] for task in TASKS]
    rows = [f"after stage {i + 1}" for i in range(len(TASKS))]
    table = pd.DataFrame(r_matrix(metrics), index=rows, columns=columns)
    floor = floors(metrics)
    table.loc["trivial floor"] = [floor.get(task, np.nan) for task in TASKS]
    return table.map(lambda v: "" if np.isnan(v) else f"{v:.3f}")


def forgetting_table(metrics: dict) -> pd.DataFrame:
    """The drops for display, with both readings of the 5 % rule."""
    rows = {
        METRIC_NAMES[d["task"]]: {
            "baseline": f"{d['baseline']:.4f}",
            "final": f"{d['final']:.4f}",
            "drop": f"{d['drop']:+.4f}",
            "drop, % of baseline": f"{100 * d['drop'] / d['baseline']:+.1f}" if d["baseline"] else "-",
            "within 5 points": verdict_text(d["points"]),
            "within 5 % of baseline": verdict_text(d["relative"]),
        }
        for d in drops(metrics)
    }
    return pd.DataFrame(rows).T


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
    kept = {task: mean_retention(results, name, task) for task in TASKS}
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
    return verdict_text(all(k[0] >= RETENTION_RULE for k in kept.values()) and not (own < RETENTION_RULE).any())


def percent(kept: tuple[float, float, float, int], runs: int) -> str:
    """Retention in per cent with its interval, and of how many seeds, where not all runs have a baseline."""
    value, low, high, seeds = kept
    of = "" if seeds == runs else f" (of {seeds})"
    # a decimal, since the rule cuts at 95
    return f"{100 * value:.1f} [{100 * low:.0f}, {100 * high:.0f}]{of}"
