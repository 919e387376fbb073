"""Claims: Holm's adjustment by hand, verdicts on hand-made runs, the committed sentences against the runs."""

import re
from dataclasses import replace

import nbformat
import pytest
from test_results import run

from mtl_utils import files
from mtl_utils.experiments import claims as claims_module
from mtl_utils.experiments.claims import ALONE, CLAIMS, MOST_CLAIMS, Claim
from mtl_utils.experiments.results import read_folds
from mtl_utils.files import UserError
from mtl_utils.publish import readme

CLAIM = Claim("new", "old", ("det",), "above", 1.0, "shown", "New is better.", "新的較好。")


def final(name, values, draws, seed=0):
    """A run of the three stages with these final metrics by task, and these values on the resamples."""
    resampled = {task: [round(1e4 * value) for value in of_task] for task, of_task in draws.items()}
    return run(name, {"cls": values}, {"cls": resampled}, seed)


def pair(draws, value=0.3):
    """A run of detection with these values on the resamples, and one that is .2 on all of them."""
    return [final("new", {"det": value}, {"det": draws}), final("old", {"det": 0.2}, {"det": [0.2] * len(draws)})]


def test_holm_by_hand():
    """4 x .005, 3 x .01, 2 x .03, and .04, which is not below the one before: as R's p.adjust gives it."""
    assert claims_module.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert claims_module.holm([0.6, 0.7]) == [1.0, 1.0]


def test_p_is_the_share_of_resamples_on_the_wrong_side():
    """One of 99 resamples is at or below the bound, and the observed sample counts: 2 of 100."""
    evidence = claims_module.gather([pair([0.3] * 98 + [0.2])], CLAIM)
    assert evidence.p == pytest.approx(0.02)
    below = replace(CLAIM, side="below")
    assert claims_module.gather([pair([0.3] * 98 + [0.1])], below).p == pytest.approx(0.99)


@pytest.mark.parametrize(
    ("draws", "value", "verdict"),
    [
        ([0.3] * 99, 0.3, "shown"),
        ([0.3] * 90 + [0.1] * 9, 0.3, "point estimate only"),
        ([0.3] * 99, 0.2, "fails"),  # exactly at the bound is not above it
        ([0.1] * 99, 0.1, "fails"),
    ],
)
def test_the_three_verdicts(draws, value, verdict):
    ((_, _, found),) = claims_module.verdicts([pair(draws, value)], [CLAIM])
    assert found == verdict


def test_more_claims_make_each_one_harder_to_show():
    """p is 2 of 100: enough for one claim, not for two."""
    results = pair([0.3] * 98 + [0.1])
    assert [v for *_, v in claims_module.verdicts([results], [CLAIM])] == ["shown"]
    assert [v for *_, v in claims_module.verdicts([results], [CLAIM] * 2)] == ["point estimate only"] * 2


def test_a_claim_about_several_tasks_is_as_weak_as_the_weakest():
    certain, uncertain = [0.3] * 99, [0.3] * 90 + [0.1] * 9
    draws = {"seg": certain, "det": uncertain}
    results = [final("new", dict(seg=0.3, det=0.3), draws)]
    results.append(final("old", dict(seg=0.2, det=0.2), dict(seg=[0.2] * 99, det=[0.2] * 99)))
    both = replace(CLAIM, tasks=("seg", "det"))
    evidence = claims_module.gather([results], both)
    assert evidence.p == claims_module.gather([results], CLAIM).p == pytest.approx(0.1)
    assert claims_module.gather([results], replace(CLAIM, tasks=("seg",))).p == pytest.approx(0.01)


def test_ratios_are_paired_by_seed_and_averaged():
    results = [*pair([0.3, 0.4]), final("new", {"det": 0.1}, {"det": [0.1, 0.1]}, seed=1)]
    results.append(final("old", {"det": 0.2}, {"det": [0.1, 0.2]}, seed=1))
    value, resampled = claims_module.mean_ratio([results], CLAIM, "det")
    assert value == pytest.approx((1.5 + 0.5) / 2)
    assert sorted(resampled) == pytest.approx(sorted([(1.5 + 1.0) / 2, (2.0 + 0.5) / 2]))


def test_a_seed_without_its_baseline_is_left_out_and_not_counted():
    results = [*pair([0.3, 0.4]), final("new", {"det": 0.9}, {"det": [0.9, 0.9]}, seed=1)]
    evidence = claims_module.gather([results], CLAIM)
    assert evidence.ratios["det"].value == pytest.approx(1.5) and evidence.seeds == 1
    assert list(claims_module.claims_table([results], [CLAIM])["seeds"]) == ["1"]


def test_folds_are_averaged_and_their_resamples_are_not_paired():
    """Two folds with the same ratios, half 1 and half 2: the mean of two independent draws has half the variance."""
    fold = pair([0.2, 0.4] * 500, value=0.3)
    value, resampled = claims_module.mean_ratio([fold, fold], CLAIM, "det")
    assert value == pytest.approx(1.5) and len(resampled) == 1000
    assert resampled.var() == pytest.approx(0.25 / 2, rel=0.1)


def test_alone_is_the_single_task_run_and_stage_1_of_the_default():
    rows = {"seg": {"seg": 0.4}, "det": {"seg": 0.1, "det": 0.1}, "cls": {"seg": 0.5, "det": 0.3, "cls": 0.9}}
    results = [run("replay", rows), run("single-det", {"det": {"det": 0.2}})]
    for task, ratio in (("seg", 1.25), ("det", 1.5)):
        value, _ = claims_module.mean_ratio([results], replace(CLAIM, run="replay", than=ALONE), task)
        assert value == pytest.approx(ratio)


@pytest.mark.parametrize(
    ("results", "sentence"),
    [
        ([], "No seed has the runs new and old for mAP@50"),
        (pair([0.3])[:1], "No seed has the runs new and old for mAP@50: .*cross-validation. makes them"),
    ],
)
def test_a_missing_run_is_a_sentence_and_no_verdict(results, sentence):
    with pytest.raises(UserError, match=sentence):
        claims_module.verdicts([results], [CLAIM])


# --- the committed sentences -----------------------------------------------------------------------------------------


def test_every_sentence_has_the_verdict_that_its_runs_give_it():
    assert len(CLAIMS) <= MOST_CLAIMS
    judged = claims_module.verdicts(read_folds(files.STUDY_RESULTS / "full"), CLAIMS)
    for claim, (_, _, verdict) in zip(CLAIMS, judged, strict=True):
        assert verdict == claim.verdict, claim.english


@pytest.mark.parametrize(
    "changes",
    [
        dict(run="no-replay", than="replay", tasks=("seg",)),  # without replay mIoU ends higher
        dict(run="replay", than="no-replay", tasks=("det",), side="below"),  # replay harms detection
        dict(run="replay", than=ALONE, tasks=("seg", "det", "cls"), bound=3.0),  # every task is three times better
    ],
)
def test_a_false_sentence_is_found_out(changes):
    ((_, _, verdict),) = claims_module.verdicts(read_folds(files.STUDY_RESULTS / "full"), [replace(CLAIM, **changes)])
    assert verdict == "fails"


def test_no_page_uses_a_verdict_word_outside_its_list_of_claims():
    word = re.compile(r"\*\*?(shown|point estimate only|fails|已證實|僅為點估計|不成立)\*\*?")
    for name in readme.PAGES:
        text = readme.read(name)
        kept = re.sub(r"<!-- claims.*?<!-- end -->", "", text, flags=re.DOTALL)
        assert word.search(text) or name not in readme.READMES
        assert not word.search(kept), name
    for path in files.NOTEBOOKS.glob("*.ipynb"):
        for cell in nbformat.read(path, as_version=4).cells:
            assert cell.cell_type == "code" or not word.search(cell.source), path.name
