"""The generated parts of four pages: the results in both READMEs and in the report, and the tables of the evidence.

All of it is made from figures/metrics.json and figures/study/, and stands between two marks of a page.
"""

import re
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from statistics import mean
from typing import Literal

from mtl_utils import files
from mtl_utils.experiments import claims, plans, sizes, tables
from mtl_utils.experiments.results import (
    RunSummary,
    alone_values,
    passes,
    read_folds,
    read_results,
    run_names,
    runs_named,
)
from mtl_utils.files import UserError
from mtl_utils.forgetting import Drop, drops, five_percent_rule, verdict_text
from mtl_utils.plots.studies import draw_study
from mtl_utils.run import RunMetrics, read_metrics
from mtl_utils.settings import Settings
from mtl_utils.tasks import METRIC_NAMES, TASK_NAMES, TASKS, Task, stage_number


@dataclass(frozen=True)
class Wording:
    """What one README says around its numbers; a word in braces stands for a number."""

    header: tuple[str, ...]  # of the results table
    model: str  # what the model costs
    one_seed: str  # what the default reaches, where it was run with one seed
    seeds: str  # the same as a mean over several
    few: str  # how many of the runs with few stored images pass
    run: str  # about the committed run
    retention: str  # final values beside the single-task baselines
    sizes: str  # header of the first column of the table of input sizes
    milliseconds: str  # and of its last one
    language: Literal["english", "chinese"]  # in which the claims are told
    verdicts: dict[claims.Verdict, str]  # a word for each
    claims: str  # what the verdicts mean; above the list
    comma: str  # between the numbers of two tasks
    space: str  # between two sentences


ENGLISH = Wording(
    header=(
        "after stage 3",
        "floor",
        "before any stage",
        "single-task",
        "own stage",
        "final",
        "drop",
        "of baseline",
        "verdict",
    ),
    model=(
        "{parameters:.1f} M parameters (8 M are allowed). One forward of one {size} × {size} input gives all three "
        "answers: {forwards:.0f} forward per photograph, counted in the evaluation."
    ),
    one_seed=(
        "One seed so far, on the real mini sets: {scores}. The assignment's 5 % rule against single-task training: "
        "{verdict}."
    ),
    seeds=(
        "Mean ± standard deviation over {seeds} seeds on the real mini sets: {scores}. The assignment's 5 % rule "
        "against single-task training: {verdict} in the mean, and for {passed} of {seeds} seeds by themselves."
    ),
    few="With {images} stored images per task instead of {all}, {passed} of {runs} runs pass it.",
    run=(
        "The table is one run: profile `{profile}`, seed {seed}, start `{start}`, {minutes} minutes of training for "
        "the three stages ({device})."
    ),
    retention=(
        "The final value in per cent of the single-task baseline [95 % interval over val images; seeds: {seeds}]: "
        "{retention}."
    ),
    sizes="input, pixels",
    milliseconds="milliseconds",
    language="english",
    verdicts={"shown": "shown", "point estimate only": "point estimate only", "fails": "fails"},
    claims=(
        "Verdicts on sentences that compare runs. **shown**: true in at least 97.5 % of bootstrap resamples of the val "
        "images, after Holm's correction. **point estimate only**: true on val, but in fewer resamples. "
        "**fails**: not true on val. Resamples cover the choice of images, not of seeds (there are {seeds})."
    ),
    comma=", ",
    space=" ",
)
CHINESE = Wording(
    header=(
        "階段 3 之後",
        "簡單預測分數",
        "所有階段開始之前",
        "單任務",
        "該階段結束時",
        "最終",
        "下降",
        "與基準之比",
        "判定",
    ),
    model=(
        "{parameters:.1f} M 個參數（上限 8 M）。一個 {size} × {size} 的輸入、一次前向傳播，就得到三項答案："
        "評估時實際計數，每張照片前向傳播 {forwards:.0f} 次。"
    ),
    one_seed="真實資料上，目前只有一個種子：{scores}。以單任務訓練為基準，作業的 5 % 規則：{verdict}。",
    seeds=(
        "真實資料上 {seeds} 個種子的平均 ± 標準差：{scores}。"
        "以單任務訓練為基準，作業的 5 % 規則：平均 {verdict}；逐一來看，{seeds} 個種子中有 {passed} 個通過。"
    ),
    few="每項任務只存 {images} 張影像而非 {all} 張時，{runs} 次執行中有 {passed} 次通過。",
    run=(
        "表中為單次執行的結果：設定檔 `{profile}`、種子 {seed}、起始權重 `{start}`，"
        "三個階段的訓練時間為 {minutes} 分鐘（{device}）。"
    ),
    retention="最終值佔單任務基準的百分比［對 val 影像重抽的 95 % 區間；種子數 {seeds}］：{retention}。",
    sizes="輸入（像素）",
    milliseconds="毫秒",
    language="chinese",
    verdicts={"shown": "已證實", "point estimate only": "僅為點估計", "fails": "不成立"},
    claims=(
        "比較不同執行的句子，各有一個判定。"
        "**已證實**：對 val 影像重抽（bootstrap），經 Holm 校正後，至少 97.5 % 的樣本中成立。"
        "**僅為點估計**：在 val 上成立，但成立的樣本較少。**不成立**：在 val 上就不成立。"
        "重抽涵蓋影像的選擇，不涵蓋種子的選擇（種子數 {seeds}）。"
    ),
    comma="、",
    space="",
)
READMES = {"README.md": ENGLISH, "README.zh-TW.md": CHINESE}
STUDY_PAGE = "figures/study/README.md"
REPORT_PAGE = "REPORT.md"
PAGES = (*READMES, STUDY_PAGE, REPORT_PAGE)
NO_RUNS = "No run of this profile has been made with the present network yet."
FEW_IMAGES = min(plans.BUFFER_SIZES)  # that a task stores
STUDIED = ("full", "quick")  # the profiles whose studies are shown; in the last one every run was made


def remake_readmes() -> None:
    """Make the generated parts of all pages anew, and the figures of the study in which every run was made."""
    if read_results(files.STUDY_RESULTS / STUDIED[-1]):
        draw_study(STUDIED[-1])
    for page in PAGES:
        write_page(page, remade(page))


def remade(page: str) -> str:
    """The text of one of PAGES with its generated parts made anew."""
    text = read(page)
    if page == STUDY_PAGE:
        return with_studies(text)
    if page == REPORT_PAGE:
        return with_report(text)
    return with_results(text, READMES[page])


# ---- pages and their marks


def read(page: str) -> str:
    """The text of a page of the project."""
    return (files.PROJECT / page).read_text(encoding="utf-8")


def write_page(page: str, text: str) -> None:
    """Give a page a new text."""
    write_text(files.PROJECT / page, text)


def write_text(path: Path, text: str) -> None:
    """Write a text file: it is whole or as it was before."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file of any kind: it is whole or as it was before."""
    files.write_atomically(path, lambda file: file.write(content))


def between(text: str, name: str, content: str) -> str:
    """A text with new content between the mark of that name and the next end mark.

    Raises UserError where the text has no such mark: its numbers would go out of step in silence.
    """
    pattern = re.compile(f"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not pattern.search(text):
        raise UserError(f"A page lacks the marks <!-- {name} --> and <!-- end -->: restore them from its last version.")
    return pattern.sub(lambda match: f"{match[1]}{content}\n{match[2]}", text)


def markdown(rows: list[list[str]]) -> str:
    """A table as markdown; the first row is its header."""
    header, *body = rows
    ruled = [header, ["---"] * len(header), *body]
    lines = [f"| {' | '.join(row)} |" for row in ruled]
    return "\n".join(lines)


# ---- the READMEs


def with_results(text: str, wording: Wording) -> str:
    """A README's text with its headline and its results made anew."""
    metrics = read_metrics(files.COMMITTED_METRICS)
    text = between(text, "sizes", sizes_table(metrics, wording))
    return with_run(text, metrics, wording)


def with_run(text: str, metrics: RunMetrics, wording: Wording) -> str:
    """The text of a page with its headline, its table of results and its claims made anew."""
    results = read_results(files.STUDY_RESULTS / metrics.key.settings.profile)
    words = seed_words(results, wording)

    sentences = [model_words(metrics, wording), scores_words(words, wording), few_images_words(wording)]
    headline = wording.space.join(sentences)
    table = results_table(metrics, results, wording)
    retention = wording.retention.format(**words)
    about = about_run(metrics, wording) + wording.space + retention

    text = between(text, "headline", headline)
    folds = read_folds(files.STUDY_RESULTS / metrics.key.settings.profile)
    text = between(text, "claims", claims_list(folds, wording, words["seeds"]))
    return between(text, "results", f"{table}\n\n{about}")


def model_words(metrics: RunMetrics, wording: Wording) -> str:
    """What the committed model costs."""
    final = metrics.stage_metrics[TASKS[-1]]
    return wording.model.format(
        parameters=metrics.parameters / 1e6,
        size=metrics.key.settings.eval_size,
        forwards=final[TASKS[0]].forwards,
    )


def scores_words(words: dict[str, str], wording: Wording) -> str:
    """What the default reaches, in the words for one seed or for several."""
    sentence = wording.one_seed if words["seeds"] == "1" else wording.seeds
    return sentence.format(**words)


def few_images_words(wording: Wording) -> str:
    """How many of all studies' runs that replay only a few stored images pass the 5 % rule."""
    verdicts = []
    for profile in STUDIED:
        results = read_results(files.STUDY_RESULTS / profile)
        for name in run_names(results):
            settings = runs_named(results, name)[0].settings
            if settings.replay_per_task and settings.buffer_size == FEW_IMAGES:
                verdicts.append(passes(results, name))
    return wording.few.format(
        images=FEW_IMAGES,
        all=Settings().buffer_size,
        passed=verdicts.count(True),
        runs=len(verdicts),
    )


def sizes_table(metrics: RunMetrics, wording: Wording) -> str:
    """The committed model's metrics and milliseconds at several sizes of the input."""
    table = sizes.size_table(sizes.read_sizes(files.COMMITTED_SIZES), metrics.key.settings.eval_size)
    *metric_names, _ = table.columns  # the last one holds milliseconds
    rows = [[wording.sizes, *metric_names, wording.milliseconds]]
    for name in table.index:
        rows.append([name, *table.loc[name]])
    return markdown(rows)


def claims_list(folds: list[list[RunSummary]], wording: Wording, seeds: str) -> str:
    """What the verdicts mean, and every claim under its verdict, which is found anew in the results."""
    judged = claims.verdicts(folds, claims.CLAIMS)
    fewest = min(evidence.seeds for evidence, _, _ in judged)
    lines = [wording.claims.format(seeds=seeds if seeds == str(fewest) else f"{fewest}–{seeds}"), ""]
    for claim, (_, _, verdict) in zip(claims.CLAIMS, judged, strict=True):
        sentence = getattr(claim, wording.language)
        lines.append(f"- **{wording.verdicts[verdict]}**: {sentence}")
    return "\n".join(lines)


def seed_words(results: list[RunSummary], wording: Wording) -> dict[str, str]:
    """What is said of the default over its seeds: values, retention, verdict, and how many seeds pass by themselves."""
    row = tables.table_row(results, plans.REPLAY.name)
    seeds = tables.seeds_table(results, plans.REPLAY.name)
    passed = seeds["5 % rule"] == verdict_text(True)

    scores = []
    retention = []
    for task in TASKS:
        name = METRIC_NAMES[task]
        scores.append(f"{name} {row[name]}")
        retention.append(f"{name} {row[f'{name}, % of alone']}")
    return {
        "seeds": row["seeds"],
        "verdict": row["5 % rule"],
        "passed": str(int(passed.sum())),
        "scores": wording.comma.join(scores),
        "retention": wording.comma.join(retention),
    }


def about_run(metrics: RunMetrics, wording: Wording) -> str:
    """How the committed run was made."""
    minutes = [f"{stage.minutes:.0f}" for stage in metrics.stages.values()]
    return wording.run.format(
        profile=metrics.key.settings.profile,
        seed=metrics.key.settings.seed,
        start=metrics.key.initial_weights.split(" ")[0],  # the label is the file's name and its hash
        minutes=" + ".join(minutes),
        device=metrics.device,
    )


def results_table(metrics: RunMetrics, results: list[RunSummary], wording: Wording) -> str:
    """The README's table of the committed run, one row a task."""
    single = alone_values(results, metrics.key.settings.seed)
    rows = [list(wording.header)]
    for own in drops(metrics.stage_metrics):
        rows.append(results_row(own, single.get(own.task), metrics.before[own.task].value))
    return markdown(rows)


def results_row(own: Drop, single: float | None, before: float) -> list[str]:
    """One row of the table: drop and verdict are against the larger of the two baselines.

    own: the rule against the value at the task's own stage. single: the single-task baseline, None without such a run.
    before: the metric before any stage.
    """
    baselines = [own.baseline]
    if single is not None:
        baselines.append(single)
    drop = five_percent_rule(own.task, own.final, baselines, own.floor)
    kept = drop.final / drop.baseline if drop.baseline else 0.0
    return [
        METRIC_NAMES[own.task],
        f"{drop.floor:.3f}",
        f"{before:.3f}",
        tables.MISSING if single is None else f"{single:.3f}",
        f"{own.baseline:.3f}",
        f"{drop.final:.3f}",
        f"{drop.drop:+.3f}",
        f"{100 * kept:.0f} %",
        verdict_text(drop.passed),
    ]


# ---- the report


def with_report(text: str) -> str:
    """The report's text with all its numbers made anew."""
    metrics = read_metrics(files.COMMITTED_METRICS)
    profile = metrics.key.settings.profile
    text = with_run(text, metrics, ENGLISH)
    text = between(text, f"study {profile}", evidence_table(read_results(files.STUDY_RESULTS / profile)))
    return between(text, "schedule", schedule_table(metrics))


def schedule_table(metrics: RunMetrics) -> str:
    """The settings of the committed run that make its schedule, one row a stage."""
    settings = metrics.key.settings
    rows = [["stage", "epochs", "new images a step", "replayed a step", "input", "rate", "frozen", "minutes"]]
    for task, stage in metrics.stages.items():
        earlier = settings.earlier(task)
        frozen = ["trunk"] if settings.freeze_trunk else []
        if earlier and settings.freeze_neck[task]:
            frozen += ["pooling", "fusion"]
        rows.append(
            [
                f"{stage_number(task)}. {TASK_NAMES[task]}",
                str(settings.epochs[task]),
                str(settings.batch_size[task]),
                f"{settings.replay_per_task} of {' and of '.join(earlier)}" if earlier else tables.MISSING,
                f"{settings.train_size[task]} px",
                f"{settings.lr[task]:g}",
                ", ".join(frozen) or tables.MISSING,
                f"{stage.minutes:.0f}",
            ]
        )
    return markdown(rows)


# ---- the evidence


def with_studies(text: str) -> str:
    """The text of the evidence's page with the table of every profile made anew."""
    for profile in STUDIED:
        results = read_results(files.STUDY_RESULTS / profile)
        text = between(text, f"study {profile}", evidence_table(results))
        folds = read_folds(files.STUDY_RESULTS / profile)
        text = between(text, f"claims {profile}", claims_table(folds))
    return between(text, "sizes on folds", folds_table())


def folds_table() -> str:
    """The metrics at several sizes of the input on photographs held out of the training sets: means over the folds."""
    content = files.read_json(files.SIZES_ON_FOLDS, "restore it from the project's repository")
    rows = [["input, pixels", *METRIC_NAMES.values(), "mean of the three"]]
    by_size: dict[int, list[dict[Task, float]]] = {}
    for row in content["rows"]:
        by_size.setdefault(row["size"], []).append(row["values"])
    for size, values in by_size.items():
        means = [mean(map(itemgetter(task), values)) for task in TASKS]
        average = mean(means)
        rows.append([str(size), *map("{:.3f}".format, [*means, average])])
    return markdown(rows)


def claims_table(folds: list[list[RunSummary]]) -> str:
    """The claims as markdown, with the numbers that decide on them; a sentence where there is no run."""
    if not folds:
        return NO_RUNS
    table = claims.claims_table(folds, claims.CLAIMS)
    rows = [["claim", *table.columns]]
    for name in table.index:
        rows.append([name, *table.loc[name]])
    return markdown(rows)


def evidence_table(results: list[RunSummary]) -> str:
    """The runs of one profile as markdown; a sentence where there is none."""
    if not results:
        return NO_RUNS
    table = tables.evidence_table(results)
    rows = [["run", *table.columns]]
    for name in table.index:
        rows.append([f"`{name}`", *table.loc[name]])
    return markdown(rows)
