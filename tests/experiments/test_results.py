"""Retention, its intervals and the forgetting numbers from hand-made summaries."""

import json
from dataclasses import replace

import numpy as np
import pytest

from mtl_utils.evaluation import TaskMetrics
from mtl_utils.experiments import results as results_module
from mtl_utils.experiments import tables
from mtl_utils.experiments.results import Estimate, RunSummary
from mtl_utils.files import UserError
from mtl_utils.forgetting import five_percent_rule, forgetting_numbers
from mtl_utils.plots import explorer, studies
from mtl_utils.publish import readme, recheck
from mtl_utils.run import RunKey
from mtl_utils.settings import Settings


def run(name, rows, draws=None, seed=0, changes=None, floor=0.0):
    """A summary; rows: {stage: {task: metric}}, draws: {stage: {task: values}} (default: the metrics, twice)."""
    metrics = {}
    for stage, row in rows.items():
        metrics[stage] = {task: TaskMetrics(task, value, floor, per_class={}, images=0) for task, value in row.items()}
    draws = draws or {s: {t: [round(1e4 * v)] * 2 for t, v in row.items()} for s, row in rows.items()}
    return RunSummary(
        name=name,
        overrides=changes or {},
        settings=Settings(seed=seed, **(changes or {})),
        data_fingerprints={"seg": "0123"},
        initial_weights="nothing",
        source="by hand",
        device="cpu",
        provenance={},
        minutes={},
        stored_bytes=2_500_000,
        before={"seg": 0.03, "det": 0.0, "cls": 0.12},
        metrics=metrics,
        val_curve={},
        bootstrap_draws=draws,
    )


AFTER = {"seg": {"seg": 0.5}, "det": {"seg": 0.52, "det": 0.2}, "cls": {"seg": 0.48, "det": 0.19, "cls": 0.9}}
REPLAY = run("replay", AFTER)
ALONE_DET, ALONE_CLS = run("single-det", {"det": {"det": 0.25}}), run("single-cls", {"cls": {"cls": 0.9}})
RESULTS = [REPLAY, ALONE_DET, ALONE_CLS]


def test_retention_is_against_the_task_alone():
    kept = {task: results_module.mean_retention(RESULTS, "replay", task).value for task in ("seg", "det", "cls")}
    assert kept == {"seg": pytest.approx(0.96), "det": pytest.approx(0.76), "cls": pytest.approx(1.0)}


def test_without_a_baseline_nothing_is_said():
    assert results_module.mean_retention([REPLAY], "replay", "det") is None
    assert "–" in tables.evidence_table([REPLAY]).loc["replay"].tolist()


def test_resamples_are_paired():
    """Baseline and final value go up and down together: the ratio is the same on every resample, so it is certain."""
    base = run("single-det", {"det": {"det": 0.2}}, {"det": {"det": [1000, 2000, 3000]}})
    final = run("replay", {"cls": {"det": 0.1}}, {"cls": {"det": [500, 1000, 1500]}})
    kept = results_module.mean_retention([base, final], "replay", "det")
    assert (kept.value, kept.low, kept.high, kept.seeds) == (0.5, 0.5, 0.5, 1)


def test_resamples_in_which_the_baseline_found_nothing_are_left_out():
    base = run("single-det", {"det": {"det": 0.2}}, {"det": {"det": [0, 2000]}})
    final = run("replay", {"cls": {"det": 0.1}}, {"cls": {"det": [500, 1000]}})
    kept = results_module.mean_retention([base, final], "replay", "det")
    assert (kept.value, kept.low, kept.high) == (0.5, 0.5, 0.5)


def test_seeds_are_compared_with_their_own_baseline_and_averaged():
    other = [run("single-det", {"det": {"det": 0.1}}, seed=1), run("replay", {"cls": {"det": 0.1}}, seed=1)]
    kept = results_module.mean_retention([*RESULTS, *other], "replay", "det")
    assert kept.value == pytest.approx((0.76 + 1.0) / 2) and kept.seeds == 2


@pytest.mark.parametrize(
    ("changes", "data", "weights", "expected"),
    [
        ({}, "0123", "nothing", {"det": 0.25}),
        ({"epochs": {"seg": 9, "det": 9, "cls": 1}}, "0123", "nothing", {"det": 0.25}),  # of another task
        ({"epochs": {"seg": 9, "det": 1, "cls": 9}}, "0123", "nothing", {}),
        ({"seed": 1}, "0123", "nothing", {}),
        ({}, "4567", "nothing", {}),
        ({}, "0123", "imagenet", {}),
    ],
)
def test_a_task_alone_is_comparable_where_only_the_other_tasks_differ(changes, data, weights, expected):
    nine = {"epochs": dict.fromkeys(AFTER, 9)}
    alone = run("single-det", {"det": {"det": 0.25}}, changes={"tasks": ["det"]} | nine)
    alone = replace(alone, data_fingerprints={"det": "0123"})
    key = RunKey(Settings(**(nine | changes)), {"seg": "89", "det": data}, weights)
    assert results_module.comparable_alone([alone], key) == expected


def numbers(estimate: Estimate) -> object:
    """Value and interval of an estimate, to compare with a tuple."""
    return pytest.approx((estimate.value, estimate.low, estimate.high))


def test_differences_are_paired_and_averaged_over_the_seeds_that_both_have():
    """Both metrics go up and down together: their difference is the same on every resample."""
    better = [run("lwf", AFTER, {"cls": {t: [5000, 6000, 7000] for t in AFTER}}, seed) for seed in (0, 1)]
    worse = [run("naive", {"cls": dict.fromkeys(AFTER, 0.1)}, {"cls": {t: [4000, 5000, 6000] for t in AFTER}})]
    assert numbers(results_module.difference([*better, *worse], "lwf", "naive", "seg")) == (0.38, 0.1, 0.1)
    other = [run("naive", {"cls": dict.fromkeys(AFTER, 0.2)}, {"cls": {t: [5000, 6000, 7000] for t in AFTER}}, seed=1)]
    both = results_module.difference([*better, *worse, *other], "lwf", "naive", "seg")
    assert numbers(both) == (0.33, 0.05, 0.05)
    with pytest.raises(UserError, match="no seed that both lwf and replay"):
        results_module.difference([*better, run("replay", AFTER, seed=7)], "lwf", "replay", "seg")


def test_a_star_marks_a_difference_whose_interval_leaves_out_0():
    one = run("lwf", AFTER, {"cls": {"seg": [5000, 6000], "det": [1000, 3000], "cls": [8000, 8000]}})
    other = run("naive", AFTER, {"cls": {"seg": [4000, 5500], "det": [2000, 2000], "cls": [9000, 9000]}})
    table = tables.differences_table([one, other], [("lwf", "naive")])
    assert table.loc["lwf − naive"].tolist() == [
        "1",
        "+0.000 [+0.051, +0.099] *",
        "+0.000 [-0.095, +0.095]",
        "+0.000 [-0.100, -0.100] *",
    ]


def test_the_final_metric_of_every_seed_has_its_own_interval():
    draws = {"cls": {"det": list(range(1000, 3001))}}
    results = [run("replay", {"det": {"det": 0.5}, "cls": {"det": 0.2}}, draws, seed) for seed in (1, 0)]
    scores = results_module.final_scores([*results, ALONE_DET], "replay", "det")
    assert list(scores) == [0, 1] and numbers(scores[1]) == (0.2, 0.105, 0.295), "2.5 % from either end"


def test_cost_and_the_least_that_is_kept_by_run():
    """Detection keeps least: .19 of .25. Joint training and a run without baselines are left out."""
    joint = run("joint", {"cls": AFTER["cls"]}, changes={"joint": True})
    cheap = replace(run("lwf", AFTER), stored_bytes=1_000_000)
    points = studies.costs_and_retention([*RESULTS, joint, cheap])
    assert list(points) == ["lwf", "replay"]
    assert points["lwf"] == (1.0, pytest.approx(0.76)) and points["replay"] == (2.5, pytest.approx(0.76))
    assert studies.costs_and_retention([REPLAY]) == {}


def test_the_table_says_how_many_seeds_have_a_baseline():
    table = tables.evidence_table([*RESULTS, run("replay", AFTER, seed=1)])
    assert table.loc["replay", "seeds"] == "2" and table.loc["replay", "mIoU, % of alone"] == "96.0 [96, 96]"
    assert table.loc["replay", "mAP@50, % of alone"] == "76.0 [76, 76] (of 1)"
    assert table.loc["replay", "5 % rule"] == "–", "the seed without a baseline may be the one that fails"


def test_seeds_are_judged_one_by_one():
    """The mean over both seeds passes, one of them alone does not."""
    results = []
    for seed, value in ((1, 0.3), (0, 0.1)):
        final = {"seg": 0.5, "det": value, "cls": 0.9}
        results.append(run("replay", {"seg": {"seg": 0.5}, "cls": final}, seed=seed))
        results.append(run("single-det", {"det": {"det": 0.2}}, seed=seed))
        results.append(run("single-cls", {"cls": {"cls": 0.9}}, seed=seed))
    table = tables.seeds_table(results, "replay")
    assert table["mAP@50, % of alone"].to_dict() == {0: "50.0 [50, 50]", 1: "150.0 [150, 150]"}
    assert [verdict.split()[-1] for verdict in table["5 % rule"]] == ["FAIL", "PASS"]
    assert table["least % of a baseline"].to_dict() == {0: "50.0 (mAP@50)", 1: "100.0 (mIoU)"}


def test_the_table_as_markdown():
    lines = readme.evidence_table(RESULTS).splitlines()
    assert lines[0].startswith("| run | seeds | mIoU |")
    assert len(lines) == 4 and lines[3].startswith("| `replay` | 1 | 0.480 | 96.0 [96, 96] |")
    assert lines[2].startswith("| `before any stage` | 1 | 0.030 | – | 0.000 | – | 0.120 | – |")
    assert len({line.count("|") for line in lines}) == 1


def test_forgetting_numbers_by_hand():
    numbers = forgetting_numbers(REPLAY.matrix)
    assert numbers["BWT"] == pytest.approx(((0.48 - 0.5) + (0.19 - 0.2)) / 2)
    assert numbers["forgetting"] == pytest.approx(((0.52 - 0.48) + (0.2 - 0.19)) / 2)


def test_forgetting_is_below_zero_where_the_last_stage_made_a_task_better():
    """As in Chaudhry et al. 2018: the best value is one before the last stage."""
    nan = float("nan")
    matrix = np.array([[0.5, nan, nan], [0.4, 0.2, nan], [0.6, 0.25, 0.9]])
    numbers = forgetting_numbers(matrix)
    assert numbers["forgetting"] == pytest.approx(((0.5 - 0.6) + (0.2 - 0.25)) / 2)
    assert numbers["BWT"] == pytest.approx(-numbers["forgetting"])


def test_the_rule_asks_for_both_baselines():
    """95 % of the task alone, and 95 % of what the task had at its own stage."""

    def with_final(name, det, own):
        return run(name, {"seg": {"seg": 0.5}, "det": {"det": own}, "cls": {"seg": 0.5, "det": det, "cls": 0.9}})

    results = [REPLAY, ALONE_DET, ALONE_CLS, with_final("good", 0.24, 0.25), with_final("below alone", 0.23, 0.23)]
    results += [with_final("forgot", 0.25, 0.3)]
    verdicts = tables.evidence_table(results)["5 % rule"].drop(tables.BEFORE)
    assert verdicts.to_dict() == {"replay": "❌ FAIL", "good": "✅ PASS", "below alone": "❌ FAIL", "forgot": "❌ FAIL"}
    assert tables.evidence_table([REPLAY, ALONE_DET]).loc["replay", "5 % rule"] == "–", "no baseline of the third task"


def test_a_task_that_never_rose_above_its_floor_fails():
    """Detection keeps all of what it reached, but that is no more than its trivial prediction scores."""
    rows = {"seg": {"seg": 0.5}, "det": {"det": 0.2}, "cls": {"seg": 0.5, "det": 0.2, "cls": 0.9}}
    for floor, verdict in ((0.19, "✅ PASS"), (0.2, "❌ FAIL"), (0.21, "❌ FAIL")):
        single_det = run("single-det", {"det": {"det": 0.2}}, floor=floor)
        table = tables.evidence_table([REPLAY, single_det, ALONE_CLS, run("kept", rows, floor=floor)])
        assert table.loc["kept", "5 % rule"] == verdict


def test_for_one_seed_the_rule_is_that_of_the_closing_report():
    """The verdict from ratios is the one from the metrics themselves, against the larger of the two baselines."""
    rng = np.random.default_rng(0)
    verdicts = []
    for _ in range(300):
        own, alone, floor = rng.uniform(0.1, 1, 3)
        value = rng.uniform(0.85, 1.05) * max(own, alone)
        rows = {"seg": {"seg": 0.5}, "det": {"det": own}, "cls": {"seg": 0.5, "det": value, "cls": 0.9}}
        summary = run("one", rows, floor=floor)
        drop = results_module.five_percent_drop([summary, run("single-det", {"det": {"det": alone}})], "one", "det")
        assert drop.passed == five_percent_rule("det", value, [own, alone], floor).passed
        verdicts.append(drop.passed)
    assert 30 < sum(verdicts) < 270  # both occur


def test_a_baseline_of_0_is_none():
    results = [REPLAY, run("single-det", {"det": {"det": 0.0}}), ALONE_CLS]
    assert results_module.mean_retention(results, "replay", "det") is None
    assert tables.evidence_table(results).loc["replay", ["mAP@50, % of alone", "5 % rule"]].tolist() == ["–", "–"]


def stored_runs():
    """The committed summaries of both profiles."""
    return recheck.result_paths()


def test_summaries_are_written_as_they_are_read():
    assert stored_runs()
    for path in stored_runs():
        values = json.loads(path.read_text())
        again = RunSummary.from_dict(values).as_dict()
        assert list(again) == list(values) and json.loads(json.dumps(again)) == values


@pytest.mark.parametrize("damage", ["cut", "no metrics", "an unknown setting", "a list"])
def test_a_damaged_summary_is_named(damage, tmp_path):
    values = json.loads(stored_runs()[0].read_text())
    if damage == "no metrics":
        del values["metrics"]
    if damage == "an unknown setting":
        values["settings"]["distill"] = 1.0
    text = json.dumps([values] if damage == "a list" else values)
    (tmp_path / "lwf_seed0.json").write_text(text[:100] if damage == "cut" else text)
    with pytest.raises(UserError, match=r"lwf_seed0.json.*delete it and run the study again"):
        results_module.read_results(tmp_path)


@pytest.mark.parametrize(("own", "alone"), [(0.95, 1.0), (1.0, 0.95)])
def test_exactly_95_per_cent_of_either_baseline_passes(own, alone):
    """Detection ends with .95, and one of its two baselines is 1."""
    rows = {"seg": {"seg": 0.5}, "det": {"det": own}, "cls": {"seg": 0.5, "det": 0.95, "cls": 0.9}}
    results = [REPLAY, ALONE_CLS, run("single-det", {"det": {"det": alone}}), run("edge", rows)]
    assert tables.evidence_table(results).loc["edge", "5 % rule"] == "✅ PASS"


def test_the_values_alone_are_those_of_the_seed():
    other = run("single-det", {"det": {"det": 0.3}}, seed=1)
    assert results_module.alone_values([*RESULTS, other], 0) == {"seg": 0.5, "det": 0.25, "cls": 0.9}
    assert results_module.alone_values([*RESULTS, other], 1) == {"det": 0.3}


def test_the_table_has_a_row_for_each_kind_of_run_with_all_tasks():
    table = tables.evidence_table([*RESULTS, run("joint", {"cls": {"seg": 0.55, "det": 0.26, "cls": 0.91}})])
    assert list(table.index) == ["before any stage", "replay", "joint"]
    assert table.loc["replay", "mAP@50, % of alone"] == "76.0 [76, 76]"
    assert table.loc["replay", "average"] == "0.523"
    assert table.loc["replay", "gain, %"] == "-9.3", "mean of .96, .76 and 1, less one"
    assert table.loc["replay", "forgetting"] == "+0.025" and table.loc["joint", "forgetting"] == "–"


def test_the_first_row_is_what_the_default_begins_with():
    """The mean over its seeds, whatever other runs begin with."""
    second = replace(run("replay", AFTER, seed=1), before={"seg": 0.05, "det": 0.0, "cls": 0.08})
    other = replace(run("joint", {"cls": {"seg": 0.5, "det": 0.2, "cls": 0.9}}), before=dict.fromkeys(AFTER, 0.9))
    row = tables.evidence_table([*RESULTS, second, other]).loc["before any stage"]
    assert row[["seeds", "mIoU", "mAP@50", "Top-1"]].tolist() == [
        "2",
        "0.040 ± 0.014",
        "0.000 ± 0.000",
        "0.100 ± 0.028",
    ]
    assert row.drop(["seeds", "mIoU", "mAP@50", "Top-1"]).eq("–").all()


def test_a_summary_keeps_what_was_there_before():
    assert REPLAY.as_dict()["before"] == REPLAY.before
    assert RunSummary.from_dict(REPLAY.as_dict()) == REPLAY


def final(name, value, **more):
    """A run that ends with the same metric in all tasks."""
    return run(name, {"cls": dict.fromkeys(("seg", "det", "cls"), value)}, **more)


def test_the_default_comes_first_the_others_by_their_mean_over_seeds_and_tasks_alone_are_not_listed():
    results = [ALONE_DET, final("no-replay", 0.1), final("ewc", 0.9), final("joint", 0.7), REPLAY]
    assert results_module.run_names(results) == ["replay", "ewc", "joint", "no-replay"]
    assert results_module.run_names([*results, final("ewc", 0.3, seed=1)]) == ["replay", "joint", "ewc", "no-replay"]


def test_a_remedy_is_more_than_a_size_of_the_buffer():
    few = final("memory10-random", 0.3, changes={"buffer_size": 10, "exemplar_selection": "random"})
    more = final("memory10-lwf", 0.4, changes={"buffer_size": 10, "lwf_weight": 1.0})
    assert results_module.remedies([few, final("no-replay", 0.1), more, REPLAY]) == [
        "replay",
        "memory10-lwf",
        "no-replay",
    ]


def test_buffer_sizes_have_common_ends():
    few = [
        run(f"memory{n}-random", AFTER, changes={"buffer_size": n, "exemplar_selection": "random"}) for n in (20, 10)
    ]
    more = run("memory10-lwf", AFTER, changes={"buffer_size": 10, "lwf_weight": 1.0})
    sizes = results_module.buffer_sizes([REPLAY, run("no-replay", AFTER), *few, more])
    assert results_module.buffer_sizes([*RESULTS, run("no-replay", AFTER)]) == {
        "balanced": {0: "no-replay", 240: "replay"}
    }
    assert results_module.buffer_sizes(RESULTS) == {"balanced": {240: "replay"}}
    assert sizes == {"random": {0: "no-replay", 10: "memory10-random", 20: "memory20-random", 240: "replay"}}


def test_buffer_sizes_are_compared_on_the_seeds_that_all_of_them_have():
    """A second seed of the default alone, with a far lower baseline, does not bend the curve."""
    other = [run("replay", AFTER, seed=1), run("single-det", {"det": {"det": 0.1}}, seed=1)]
    few = run("memory10-balanced", AFTER, changes={"buffer_size": 10, "exemplar_selection": "balanced"})
    results = [*RESULTS, *other, few, run("no-replay", AFTER)]
    shared = results_module.same_seeds(results, ("replay", "memory10-balanced"))
    assert {r.seed for r in shared} == {0} and len(shared) == len(results) - 2
    assert studies.buffer_size_curves(results).axes[1].lines[0].get_ydata().tolist() == pytest.approx([0.76] * 3)
    assert results_module.same_seeds([], []) == [] and len(studies.buffer_size_curves([]).axes) == 3, (
        "no run at all: nothing to draw"
    )
    bars = explorer.BufferSizeSlider(results)
    assert results_module.mean_retention(bars.results, "replay", "det").value == pytest.approx(0.76)


def test_the_seeds_figure_shows_each_seed_the_mean_and_the_floor():
    figure = studies.seed_dots([*RESULTS, run("replay", {"cls": {"seg": 0.6, "det": 0.3, "cls": 0.8}}, seed=2)])
    panel = figure.axes[0]
    assert [label.get_text() for label in panel.get_xticklabels()] == ["0", "2"]
    assert [line.get_label() for line in panel.lines if line.get_label()[0] != "_"] == ["mean 0.540", "floor 0.000"]


def test_figures_show_what_there_is():
    few = [
        run(f"memory{n}-random", AFTER, changes={"buffer_size": n, "exemplar_selection": "random"}) for n in (10, 60)
    ]
    results = [*RESULTS, run("no-replay", AFTER), *few]
    labels = studies.retention_dots([*results, run("no-replay", AFTER, seed=1)]).axes[0].get_yticklabels()
    assert [label.get_text() for label in labels] == ["replay (1 seed)", "no-replay (2 seeds)"]
    curves = studies.buffer_size_curves(results)
    assert curves.axes[1].lines[0].get_xdata().tolist() == [0, 10, 60, 240]
    assert curves.axes[1].lines[0].get_ydata().tolist() == pytest.approx([0.76] * 4)


def test_figures_leave_out_what_has_no_baseline_yet():
    results = [REPLAY, ALONE_DET, run("no-replay", AFTER)]
    assert [len(axis.lines[0].get_xdata()) for axis in studies.buffer_size_curves(results).axes] == [2, 2, 0]
    dots = [line.get_marker() for line in studies.retention_dots(results).axes[2].lines]
    assert dots == ["None", "None"], "only the lines of the rule"


def evaluated(summary, epochs):
    """A summary with the metrics it had at the end of each stage as its only evaluations on val."""
    curve = {}
    for stage, row in summary.metrics.items():
        curve[stage] = [(epochs[stage], {task: metrics.value for task, metrics in row.items()})]
    return replace(summary, val_curve=curve, settings=replace(summary.settings, epochs=epochs))


def test_the_curves_with_and_without_replay_stand_on_one_axis_of_epochs():
    epochs = {"seg": 10, "det": 20, "cls": 5}
    worse = run(
        "no-replay", {"seg": {"seg": 0.5}, "det": {"seg": 0.1, "det": 0.2}, "cls": {"seg": 0, "det": 0, "cls": 1}}
    )
    results = [evaluated(REPLAY, epochs), evaluated(worse, epochs)]
    figure = studies.forgetting_curves(results, {"replay": "with replay", "no-replay": "without"})
    drawn = [[line.get_xydata().tolist() for line in axis.lines if len(line.get_xdata()) != 2] for axis in figure.axes]
    assert drawn[0] == [[[10, 0.5], [30, 0.52], [35, 0.48]], [[10, 0.5], [30, 0.1], [35, 0]]]
    assert drawn[2] == [[[35, 0.9]], [[35, 1]]]
    assert [text.get_text() for text in figure.axes[1].get_legend().get_texts()] == ["with replay", "without"]


def test_bars_show_what_was_kept_beside_the_rule():
    (axis,) = studies.retention_bars(RESULTS, "replay").axes
    assert [bar.get_width() for bar in axis.patches] == pytest.approx([0.96, 0.76, 1.0])
    assert [text.get_text() for text in axis.texts] == ["96%", "76%", "100%"]
    assert {line.get_xdata()[0] for line in axis.lines} >= {1.0, 0.95}


def test_a_name_stands_on_the_side_away_from_the_nearest_dot():
    """Two neighbours at 10 and 12 MB, two at 0, and one alone, which is compared with the dot at 12."""
    points = [(0.0, 0.3), (0.0, 0.7), (9.8, 0.95), (12.4, 0.92), (66.0, 0.98)]
    above = [studies.is_above_neighbour(point, points) for point in points]
    assert above == [False, True, True, False, True]
    assert studies.is_above_neighbour((1.0, 0.5), [(1.0, 0.5)])
