"""The results in both READMEs, made from figures/metrics.json and figures/study/."""

import re

from mtl_utils import files, forgetting
from mtl_utils.experiments import plans, tables
from mtl_utils.experiments import results as results_module
from mtl_utils.experiments.tables import evidence_table
from mtl_utils.forgetting import drops, five_percent_rule, floors, verdict_text
from mtl_utils.plots.studies import draw_study
from mtl_utils.tasks import METRIC_NAMES

README_WORDS = {  # what stands above and below the results table
    "README.md": {
        "header": ["after stage 3", "floor", "alone", "at its own stage", "final", "drop", "of baseline", "verdict"],
        "evidence": {},
        "about": "One run on the real mini sets: profile `{profile}`, seed {seed}, start `{start}`, {parameters:.1f} M "
        "parameters, {minutes} minutes of training for the three stages ({device}).",
        "seeds": "Mean ± standard deviation over {seeds} seeds: mIoU {mIoU}, mAP@50 {mAP@50}, Top-1 {Top-1}. "
        "The 5 % rule against the tasks alone: {rule} in the mean, and for {passed} of {seeds} seeds by themselves.",
    },
    "README.zh-TW.md": {
        "header": ["階段 3 之後", "下限", "單獨訓練", "該階段結束時", "最終", "下降", "與基準之比", "判定"],
        "evidence": {
            "run": "執行",
            "seeds": "種子數",
            "mIoU, % of alone": "mIoU，佔單獨訓練的 %",
            "mAP@50, % of alone": "mAP@50，佔單獨訓練的 %",
            "Top-1, % of alone": "Top-1，佔單獨訓練的 %",
            "5 % rule": "5 % 規則",
            "average": "平均",
            "gain, %": "增益，%",
            "forgetting": "遺忘",
        },
        "about": "真實資料上的一次執行：設定檔 `{profile}`、種子 {seed}、起始權重 `{start}`、"
        "{parameters:.1f} M 個參數，三個階段的訓練時間為 {minutes} 分鐘（{device}）。",
        "seeds": "{seeds} 個種子的平均 ± 標準差：mIoU {mIoU}、mAP@50 {mAP@50}、Top-1 {Top-1}。"
        "以單獨訓練為準的 5 % 規則：平均 {rule}；逐一來看，{seeds} 個種子中有 {passed} 個通過。",
    },
}
STUDIED = ("full", "quick")  # the profiles whose studies the READMEs show; in the last, all of it was run


def read(name: str) -> str:
    """The text of a file of the project."""
    return (files.PROJECT / name).read_text(encoding="utf-8")


def remake_readmes() -> None:
    """Make the results in both READMEs anew, and the pictures of the study in which all of it was run."""
    draw_study(STUDIED[-1])
    for name in README_WORDS:
        (files.PROJECT / name).write_text(with_results(read(name), README_WORDS[name]), encoding="utf-8")


def with_results(text: str, words: dict) -> str:
    """A README's text with the results between their marks made anew from figures/metrics.json and figures/study/."""
    metrics = forgetting.read_metrics(files.COMMITTED_METRICS)
    minutes = " + ".join(f"{stage['minutes']:.0f}" for stage in metrics["stages"].values())
    settings, start = metrics["settings"], metrics["initial_weights"].split(" ")[0]
    facts = {"profile": settings["profile"], "seed": settings["seed"], "start": start, "minutes": minutes}
    about = words["about"].format(**facts, device=metrics["device"], parameters=metrics["parameters"] / 1e6)
    results = {profile: results_module.read_results(files.STUDY_RESULTS / profile) for profile in STUDIED}
    alone = results_module.alone_values(results[settings["profile"]], settings["seed"])
    seeds = words["seeds"].format(**seed_facts(results[settings["profile"]]))
    text = between(text, "results", f"{results_markdown(metrics, alone, words['header'])}\n\n{about} {seeds}")
    for profile in STUDIED:
        text = between(text, f"study {profile}", evidence_markdown(results[profile], words["evidence"]))
    return text


def seed_facts(results: list[dict]) -> dict[str, str | int]:
    """What the READMEs say of the default over its seeds: metrics, verdict, and how many seeds pass by themselves."""
    row, each = (f(results, plans.REPLAY.name) for f in (tables.table_row, tables.seeds_table))
    return {**row, "rule": row["5 % rule"], "passed": int((each["5 % rule"] == forgetting.verdict_text(True)).sum())}


def between(text: str, name: str, made: str) -> str:
    """A text with something new between two marks."""
    return re.sub(f"(<!-- {name} -->\n).*?(<!-- end -->)", lambda m: f"{m[1]}{made}\n{m[2]}", text, flags=re.DOTALL)


def results_markdown(metrics: dict, alone: dict[str, float], header: list[str]) -> str:
    """The README's results table under a header of eight words.

    The baseline of drop and verdict is the larger of a task's value at its own stage and what it reached learned alone.
    """
    rows = [header, ["---"] * len(header)]
    for own in drops(metrics):
        task, floor = own["task"], floors(metrics)[own["task"]]
        d = five_percent_rule(task, max(own["baseline"], alone.get(task, 0.0)), own["final"], floor)
        kept = d["final"] / d["baseline"] if d["baseline"] else 0.0
        single = f"{alone[task]:.3f}" if task in alone else "–"
        values = [f"{own['baseline']:.3f}", f"{d['final']:.3f}", f"{d['drop']:+.3f}", f"{100 * kept:.0f} %"]
        rows.append([METRIC_NAMES[task], f"{floor:.3f}", single, *values, verdict_text(d["pass"])])
    return markdown(rows)


def markdown(rows: list[list[str]]) -> str:
    """Rows of a table, the first two its header and rule, as markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def evidence_markdown(results: list[dict], words: dict[str, str]) -> str:
    """The table as markdown; `words` translates column names."""
    table = evidence_table(results).fillna("–")
    columns = [words.get(column, column) for column in ("run", *table.columns)]
    rows = [[f"`{name}`", *table.loc[name]] for name in table.index]
    return markdown([columns, ["---"] * len(columns), *rows])
