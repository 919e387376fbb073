"""The sentences of the pages that compare runs, and the verdict that the studies give each of them.

A claim is about the ratio of two runs' final metrics, the mean over the seeds of which both are there and, where there
are several, over folds of cross-validation. It is

shown                if it holds beyond chance: p, adjusted for the number of claims, is at most ALPHA
point estimate only  if the ratio is on the right side of the bound, but p is larger
fails                if it is on the wrong side

p is the share of bootstrap resamples in which the ratio is on the wrong side (one-sided; Efron and Tibshirani 1993,
chapter 15); where a claim names several tasks, the largest of theirs, since it has to hold for each of them
(intersection-union test, R. L. Berger, Technometrics 24, 1982). The adjustment is that of S. Holm, "A simple
sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6, 1979.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from mtl_utils.experiments.bootstrap import LEVEL, interval
from mtl_utils.experiments.plans import NO_REPLAY, REPLAY
from mtl_utils.experiments.results import Estimate, RunSummary, find_run, ratio, runs_named, single_task_run
from mtl_utils.files import UserError
from mtl_utils.forgetting import TOLERANCE
from mtl_utils.tasks import METRIC_NAMES, TASKS, Task

ALPHA = (1 - LEVEL) / 2  # one-sided: the interval's other end says nothing about a claim
MOST_CLAIMS = 8  # registered before they are run; more of them would make each one harder to show
ALONE = "alone"  # stands for the single-task run of a claim's task

Verdict = Literal["shown", "point estimate only", "fails"]
Side = Literal["above", "below"]


@dataclass(frozen=True)
class Claim:
    """One sentence that compares two runs of profile `full`, and what the authors think of it."""

    run: str
    than: str  # another run, or ALONE
    tasks: tuple[Task, ...]  # it has to hold for each
    side: Side  # of the bound
    bound: float
    verdict: Verdict  # what the pages print; a test compares it with the studies
    english: str
    chinese: str


CLAIMS = [
    Claim(
        run=REPLAY.name,
        than=ALONE,
        tasks=TASKS,
        side="above",
        bound=1 - TOLERANCE,
        verdict="point estimate only",
        english="All three tasks keep more than 95 % of what they reach alone.",
        chinese="三項任務同時保有單獨訓練時的 95 % 以上。",
    ),
    Claim(
        run=REPLAY.name,
        than=ALONE,
        tasks=("seg",),
        side="above",
        bound=1 - TOLERANCE,
        verdict="point estimate only",
        english="Segmentation keeps more than 95 %.",
        chinese="分割保有 95 % 以上。",
    ),
    Claim(
        run=REPLAY.name,
        than=ALONE,
        tasks=("det",),
        side="above",
        bound=1.0,
        verdict="point estimate only",
        english="Detection ends higher than alone.",
        chinese="偵測的最終值高於單獨訓練。",
    ),
    Claim(
        run=REPLAY.name,
        than=ALONE,
        tasks=("cls",),
        side="above",
        bound=1 - TOLERANCE,
        verdict="shown",
        english="Classification keeps more than 95 %.",
        chinese="分類保有 95 % 以上。",
    ),
    Claim(
        run=NO_REPLAY.name,
        than=ALONE,
        tasks=("seg", "det"),
        side="below",
        bound=1 - TOLERANCE,
        verdict="shown",
        english="Without replay more than 5 % of mIoU and of mAP@50 are lost.",
        chinese="沒有重播時，mIoU 與 mAP@50 的損失都超過 5 %。",
    ),
    Claim(
        run=NO_REPLAY.name,
        than=REPLAY.name,
        tasks=("seg", "det"),
        side="below",
        bound=0.5,
        verdict="fails",
        english="Without replay both are less than half of what they are with replay.",
        chinese="沒有重播時，兩者都不到有重播時的一半。",
    ),
]


@dataclass(frozen=True)
class Evidence:
    """What the studies hold about a claim."""

    ratios: dict[Task, Estimate]  # by task, with the interval over resamples
    p: float  # before the adjustment
    holds: bool  # as a point estimate, in each of its tasks
    seeds: int  # of which both runs are there, in the fold with the fewest


def gather(folds: list[list[RunSummary]], claim: Claim) -> Evidence:
    """The ratios of a claim and its p. Raises UserError where a run or a baseline is missing."""
    ratios = {}
    p_values = []
    holds = []
    seeds = []  # in every task and fold
    for task in claim.tasks:
        seeds += [len(paired_runs(results, claim, task)) for results in folds]
        value, resampled = mean_ratio(folds, claim, task)
        low, high = interval(resampled)
        ratios[task] = Estimate(value, low, high)
        p_values.append(p_value(resampled, claim))
        holds.append(on_the_right_side(np.array(value), claim).item())
    return Evidence(ratios, max(p_values), all(holds), min(seeds))


def mean_ratio(folds: list[list[RunSummary]], claim: Claim, task: Task) -> tuple[float, np.ndarray]:
    """The ratio of a task, the mean over folds and over the seeds of each, and the same on every resample (resamples,).

    The seeds of a fold share its images, so their resamples are paired. Folds share none: each has an order of its own.
    Resamples in which a baseline is 0 are left out. Raises UserError where a run or a baseline is missing.
    """
    values = []
    resamples = []
    for fold, results in enumerate(folds):
        value, resampled = fold_ratio(results, claim, task)
        values.append(value)
        resamples.append(np.random.default_rng(fold).permutation(resampled))
    mean = np.mean(resamples, axis=0)  # (resamples,)
    return float(np.mean(values)), mean[~np.isnan(mean)]


def fold_ratio(results: list[RunSummary], claim: Claim, task: Task) -> tuple[float, np.ndarray]:
    """The ratio of a task in one fold, the mean over seeds, and the same on every resample (resamples,), NaN by 0.

    Raises UserError where a run or a baseline is missing.
    """
    values = []
    resamples = []
    for run, baseline in paired_runs(results, claim, task):
        stage = task if claim.than == ALONE else baseline.last  # stage 1 of the default is segmentation alone
        reference = baseline.metrics[stage][task].value
        values.append(run.final(task) / reference if reference else np.nan)
        resamples.append(ratio(run.resamples(run.last, task), baseline.resamples(stage, task)))
    return float(np.mean(values)), np.mean(resamples, axis=0)


def paired_runs(results: list[RunSummary], claim: Claim, task: Task) -> list[tuple[RunSummary, RunSummary]]:
    """The runs of a claim, each with the run of its seed that it is compared with; seeds that lack either are left out.

    Raises UserError where no seed has both.
    """
    pairs = []
    for run in runs_named(results, claim.run):
        if claim.than == ALONE:
            baseline = single_task_run(results, run.seed, task)
        else:
            baseline = find_run(results, claim.than, run.seed)
        if baseline is not None:
            pairs.append((run, baseline))
    if not pairs:
        raise UserError(
            f"No seed has the runs {claim.run} and {claim.than} for {METRIC_NAMES[task]}: "
            "`python -m mtl_utils study --what cross-validation` makes them."
        )
    return pairs


def on_the_right_side(ratios: np.ndarray, claim: Claim) -> np.ndarray:
    """Which ratios, of any shape, the claim is true of; a boolean array of that shape."""
    return ratios > claim.bound if claim.side == "above" else ratios < claim.bound


def p_value(resampled: np.ndarray, claim: Claim) -> float:
    """The share of resampled ratios (resamples,) on the wrong side; the observed sample counts as one of them."""
    wrong = np.count_nonzero(~on_the_right_side(resampled, claim))
    return (1 + wrong) / (1 + len(resampled))


def holm(p_values: list[float]) -> list[float]:
    """Holm's adjusted p values, in the order given: each may be compared with the level of a single test."""
    order = np.argsort(p_values)
    adjusted = np.empty(len(p_values))
    largest = 0.0
    for rank, index in enumerate(order):
        remaining = len(p_values) - rank
        largest = max(largest, min(1.0, remaining * p_values[index]))  # never below that of a smaller p
        adjusted[index] = largest
    return adjusted.tolist()


def verdicts(folds: list[list[RunSummary]], claims: list[Claim]) -> list[tuple[Evidence, float, Verdict]]:
    """For every claim what the studies hold, its adjusted p, and the verdict; the claims are one family.

    folds: the runs of one profile, a list for each fold of cross-validation.

    Raises UserError where a run or a baseline is missing.
    """
    gathered = [gather(folds, claim) for claim in claims]
    adjusted = holm([evidence.p for evidence in gathered])
    judged: list[tuple[Evidence, float, Verdict]] = []
    for evidence, p in zip(gathered, adjusted, strict=True):
        judged.append((evidence, p, judge(evidence, p)))
    return judged


def judge(evidence: Evidence, adjusted_p: float) -> Verdict:
    """The verdict on one claim."""
    if not evidence.holds:
        return "fails"
    return "shown" if adjusted_p <= ALPHA else "point estimate only"


def claims_table(folds: list[list[RunSummary]], claims: list[Claim]) -> pd.DataFrame:
    """One row a claim: its runs, the ratios with their intervals, the adjusted p, and the verdict."""
    rows = {}
    for claim, (evidence, p, verdict) in zip(claims, verdicts(folds, claims), strict=True):
        rows[claim.english] = {
            "runs": f"{claim.run} / {claim.than}",
            "seeds": str(evidence.seeds),
            "ratio": ratios_text(evidence),
            "wanted": f"{claim.side} {claim.bound:g}",
            "p": f"{p:.3f}",
            "verdict": verdict,
        }
    return pd.DataFrame(rows).T.rename_axis("claim")


def ratios_text(evidence: Evidence) -> str:
    """The ratios of a claim with their intervals."""
    parts = []
    for task, estimate in evidence.ratios.items():
        parts.append(f"{METRIC_NAMES[task]} {estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]")
    return ", ".join(parts)
