"""What the repository shows: of one run everything (metrics, weights, notebooks, figures), of others a line; links."""

import csv
import hashlib
import json
import re
import shutil
from pathlib import Path

import nbformat

from mtl_utils import evidence, pictures, plots, report, study
from mtl_utils.checkpoint import write_json
from mtl_utils.settings import METRIC_NAMES, PROJECT, RESULTS, TASKS, WEIGHTS, UserError
from mtl_utils.stages import Run

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
RUN_LOG = PROJECT / "figures" / "runs.csv"  # one line a run: how the recipe was found
NOTEBOOKS = PROJECT / "notebooks"
ADDRESS = re.compile('^REPOSITORY = "(.*)"', re.MULTILINE)  # in every notebook's first cell: what Colab clones
COLAB = "https://colab.research.google.com"
STUDIED = ("full", "quick")  # the profiles whose studies the READMEs show; in the last, all of it was run
SHOWN_IMAGE = 39  # of each val set: one of the four whose predictions the notebooks 03 to 05 show
SCORES = [(stage, task) for i, stage in enumerate(TASKS) for task in TASKS[: i + 1]]


def take_over(run: Path) -> None:
    """Copy a finished run on real photographs into the repository: metrics, final weights, notebooks, figures."""
    metrics = report.read_metrics(run / "metrics.json")
    report.drops(metrics)  # says which stage is missing
    if metrics["source"].startswith("synthetic"):
        raise UserError(f"{run} was made on synthetic sets: publish a run on real photographs.")
    shown = set(re.findall(r"\(figures/(\w+\.png)\)", "".join(map(read, README_WORDS))))
    copies = {run / "metrics.json": RESULTS}
    copies[run / "stage3_classification.pt"] = WEIGHTS
    copies |= {run / "figures" / name: RESULTS.parent / name for name in shown}
    for source, target in copies.items():
        shutil.copyfile(source, target)
    for path in run.glob("*.ipynb"):
        take_outputs(path, NOTEBOOKS / path.name)
    write_card(metrics)


def take_outputs(executed: Path, target: Path) -> None:
    """Give a notebook the outputs of its executed copy; its text may have been edited since, its code may not."""
    new, notebook = (nbformat.read(path, as_version=4) for path in (executed, target))
    theirs, ours = ([cell for cell in n.cells if cell.cell_type == "code"] for n in (new, notebook))
    if [cell.source for cell in theirs] != [cell.source for cell in ours]:
        raise UserError(f"{target.name} has other code than {executed}: execute it in that run first.")
    for cell, done in zip(ours, theirs, strict=True):
        cell.update(outputs=done.outputs, execution_count=done.execution_count, metadata=done.metadata)
    notebook.metadata = new.metadata
    target.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")


def write_card(metrics: dict) -> None:
    """Say beside the committed weights what they are."""
    scores = {METRIC_NAMES[task]: metrics["stages"]["cls"]["metrics"][task][METRIC_NAMES[task]] for task in TASKS}
    minutes = {task: metrics["stages"][task]["minutes"] for task in TASKS}
    digest = hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()
    about = {key: metrics[key] for key in ("start", "source", "device", "written", "settings")}
    card = {"file": WEIGHTS.name, "sha256": digest, "val": scores, "minutes": minutes, **about}
    write_json(WEIGHTS.with_suffix(".json"), card)


def log_run(run: Path, note: str) -> None:
    """Add a line about a run, finished or not, to the log: what was tried, settings, seed, metrics, minutes."""
    metrics = report.read_metrics(run / "metrics.json")
    stages = metrics["stages"]
    data, start = metrics["source"].split(" (")[0], metrics["start"].split(" ")[0]
    row = {"run": run.name, "note": note, "data": data, "start": start}
    settings = {key: value for key, value in metrics["settings"].items() if key not in ("profile", "seed")}
    row |= {"seed": metrics["settings"]["seed"], "settings": json.dumps(settings)}
    for stage, task in SCORES:
        value = stages.get(stage, {}).get("metrics", {}).get(task, {}).get(METRIC_NAMES[task])
        row[f"{METRIC_NAMES[task]} after {stage}"] = "" if value is None else f"{value:.4f}"
    row |= {f"minutes {task}": f"{stages[task]['minutes']:.1f}" if task in stages else "" for task in TASKS}
    rows = [r for r in read_log() if r["run"] != run.name] + [row]
    with open(RUN_LOG, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def draw_forgetting(base: Run, path: Path) -> None:
    """Draw what the models of a study with and without replay say about the same images after each stage.

    Nothing is drawn until both have been run. base: the study's default run.
    """
    runs = {"with replay": study.plan_run(study.REPLAY, base), "without": study.plan_run(study.FINETUNE, base)}
    if all(run.path(TASKS[-1]).exists() for run in runs.values()):
        plots.use_style()
        models = {label: {stage: run.model(stage) for stage in TASKS} for label, run in runs.items()}
        sets = {task: base.data(task, "val") for task in TASKS[:-1]}
        plots.save_light(pictures.run_grid(models, sets, base.settings.test_size, SHOWN_IMAGE), path)


def read_log() -> list[dict]:
    """The lines of the log."""
    if not RUN_LOG.exists():
        return []
    with open(RUN_LOG, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def read(name: str) -> str:
    """The text of a file of the project."""
    return (PROJECT / name).read_text(encoding="utf-8")


def draw_study(profile: str) -> None:
    """Draw what every remedy and every size of the memory keeps, beside the results of a profile's study."""
    plots.use_style()
    results, folder = study.read_results(study.RESULTS / profile), study.RESULTS / profile
    plots.save_light(plots.retention_dots(results), folder / "remedies.png")
    plots.save_light(plots.memory_curves(results), folder / "memory.png")


def remake_readmes() -> None:
    """Make the results in both READMEs anew, and the pictures of the study in which all of it was run."""
    draw_study(STUDIED[-1])
    for name in README_WORDS:
        (PROJECT / name).write_text(with_results(read(name), README_WORDS[name]), encoding="utf-8")


def with_results(text: str, words: dict) -> str:
    """A README's text with the results between their marks made anew from figures/metrics.json and figures/study/."""
    metrics = report.read_metrics(RESULTS)
    minutes = " + ".join(f"{stage['minutes']:.0f}" for stage in metrics["stages"].values())
    settings, start = metrics["settings"], metrics["start"].split(" ")[0]
    facts = {"profile": settings["profile"], "seed": settings["seed"], "start": start, "minutes": minutes}
    about = words["about"].format(**facts, device=metrics["device"], parameters=metrics["parameters"] / 1e6)
    results = {profile: study.read_results(study.RESULTS / profile) for profile in STUDIED}
    alone = evidence.alone_values(results[settings["profile"]], settings["seed"])
    seeds = words["seeds"].format(**seed_facts(results[settings["profile"]]))
    text = between(text, "results", f"{report.results_markdown(metrics, alone, words['header'])}\n\n{about} {seeds}")
    for profile in STUDIED:
        text = between(text, f"study {profile}", evidence.evidence_markdown(results[profile], words["evidence"]))
    return text


def seed_facts(results: list[dict]) -> dict[str, str | int]:
    """What the READMEs say of the default over its seeds: metrics, verdict, and how many seeds pass by themselves."""
    row, each = (f(results, study.REPLAY.name) for f in (evidence.table_row, evidence.seeds_table))
    return {**row, "rule": row["5 % rule"], "passed": int((each["5 % rule"] == report.mark(True)).sum())}


def between(text: str, name: str, made: str) -> str:
    """A text with something new between two marks."""
    return re.sub(f"(<!-- {name} -->\n).*?(<!-- end -->)", lambda m: f"{m[1]}{made}\n{m[2]}", text, flags=re.DOTALL)


def set_address(name: str) -> None:
    """Write where the project lies on GitHub (OWNER/NAME) into the notebooks' first cells, and badges everywhere."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError(f"{name!r} is not an address: give it as OWNER/NAME, as in github.com/OWNER/NAME.")
    address, paths = f"https://github.com/{name}", sorted(NOTEBOOKS.glob("*.ipynb"))
    for path in paths:
        notebook = nbformat.read(path, as_version=4)
        link_notebook(notebook, path.stem, address)
        path.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
    for readme in README_WORDS:
        text = between(read(readme), "badge", badge(paths[-1].stem, address))
        (PROJECT / readme).write_text(text, encoding="utf-8")


def link_notebook(notebook: nbformat.NotebookNode, name: str, address: str) -> None:
    """Bring the row below the title, and the address in the first code cell, in step with where the project lies."""
    title, _, rest = notebook.cells[0].source.split("\n\n", 2)
    notebook.cells[0].source = "\n\n".join([title, navigation(name, address), rest])
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    first.source = ADDRESS.sub(f'REPOSITORY = "{address}"', first.source)


def navigation(name: str, address: str) -> str:
    """The row below a notebook's title: the badge that opens it in Colab, the notebooks before and after it."""
    names = [path.stem for path in sorted(NOTEBOOKS.glob("*.ipynb"))]
    i = names.index(name)
    before = [f"[← {other}]({other}.ipynb)" for other in names[:i][-1:]]
    after = [f"[{other} →]({other}.ipynb)" for other in names[i + 1 :][:1]]
    return " · ".join([badge(name, address)] * bool(address) + before + after)


def badge(name: str, address: str) -> str:
    """The badge that opens a notebook in Colab."""
    page = address.replace("https://github.com", f"{COLAB}/github")
    return f"[![Open in Colab]({COLAB}/assets/colab-badge.svg)]({page}/blob/main/notebooks/{name}.ipynb)"
