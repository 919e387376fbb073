"""What the repository shows comes from the committed files, and both READMEs say the same."""

import hashlib
import json
import re
import shutil
from types import SimpleNamespace

import nbformat
import pytest

from mtl_utils import checkpoint, files, forgetting
from mtl_utils.cli import evaluate
from mtl_utils.cli import main as cli_main
from mtl_utils.experiments.results import read_results
from mtl_utils.files import PROJECT, UserError
from mtl_utils.plots import studies
from mtl_utils.publish import links, readme
from mtl_utils.publish import log as run_log
from mtl_utils.publish import run as publish_run
from mtl_utils.run import read_metrics
from mtl_utils.settings import Settings, get_settings
from mtl_utils.tasks import METRIC_NAMES, TASKS

DOCUMENTS = [
    *readme.PAGES,
    "TEACHING.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "data/README.md",
    "data/weights/README.md",
]


@pytest.mark.parametrize("name", readme.READMES)
def test_readme_shows_the_committed_results(name):
    text = readme.read(name)
    assert readme.with_results(text, readme.READMES[name]) == text, "run `python -m mtl_utils publish`"


def test_the_evidence_shows_the_committed_studies():
    text = readme.read(readme.STUDY_PAGE)
    assert readme.with_studies(text) == text, "run `python -m mtl_utils publish`"


def test_the_report_shows_the_committed_run():
    text = readme.read(readme.REPORT_PAGE)
    assert readme.with_report(text) == text, "run `python -m mtl_utils publish`"


def test_the_reports_schedule_is_that_of_the_settings():
    """By hand: the stages of the committed settings."""
    metrics = read_metrics(files.COMMITTED_METRICS)
    _, _, first, second, third = readme.schedule_table(metrics).splitlines()
    assert first.startswith("| 1. segmentation | 30 | 8 | – | 384 px | 0.001 | trunk |")
    assert second.startswith("| 2. detection | 60 | 4 | 6 of seg | 384 px | 0.001 | trunk |")
    assert third.startswith(
        "| 3. classification | 10 | 16 | 6 of seg and of det | 384 px | 0.001 | trunk, pooling, fusion |"
    )


@pytest.fixture
def copied_project(tmp_path, monkeypatch):
    """A copy of what the repository shows; files.X points there."""
    shutil.copytree(files.PROJECT / "figures", tmp_path / "figures")
    shutil.copytree(files.NOTEBOOKS, tmp_path / "notebooks")
    shutil.copytree(files.WEIGHTS_FOLDER, tmp_path / "data" / "weights")
    for page in (*readme.READMES, readme.REPORT_PAGE):
        shutil.copyfile(files.PROJECT / page, tmp_path / page)
    for name in ("COMMITTED_METRICS", "COMMITTED_SIZES", "COMMITTED_WEIGHTS", "STUDY_RESULTS", "NOTEBOOKS"):
        monkeypatch.setattr(files, name, tmp_path / getattr(files, name).relative_to(files.PROJECT))
    monkeypatch.setattr(files, "PROJECT", tmp_path)
    return tmp_path


def contents(folder):
    """The bytes of every file below a folder, by its path there."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_publish_changes_no_page_and_twice_is_the_same_as_once(copied_project):
    before = contents(copied_project)
    assert cli_main.main(["publish"]) == 0
    once = contents(copied_project)
    assert set(once) == set(before)  # no temporary file is left
    changed = {path.suffix for path, content in once.items() if content != before[path]}
    assert changed <= {".png"}  # another matplotlib may draw other pixels
    assert cli_main.main(["publish"]) == 0
    assert contents(copied_project) == once


def test_a_changed_result_changes_the_readme(tmp_path, monkeypatch):
    metrics = json.loads(files.COMMITTED_METRICS.read_text())
    metrics["stages"]["cls"]["metrics"]["seg"]["mIoU"] = 0.123
    monkeypatch.setattr(files, "COMMITTED_METRICS", tmp_path / "metrics.json")
    files.COMMITTED_METRICS.write_text(json.dumps(metrics))
    assert "| 0.123 |" in readme.with_results(readme.read("README.md"), readme.ENGLISH)


def test_a_changed_study_changes_the_pages(tmp_path, monkeypatch):
    shutil.copytree(files.STUDY_RESULTS / "full", tmp_path / "full")
    for path in (tmp_path / "full").glob("*_seed[1-9].json"):
        path.unlink()
    for path in sorted((tmp_path / "full").glob("*_seed0.json")):
        for seed, value in enumerate((0.121, 0.125)):
            summary = json.loads(path.read_text())
            summary["settings"]["seed"] = seed
            if summary["name"] == "replay":
                summary["metrics"]["cls"]["cls"]["Top-1"] = value
            path.with_name(f"{summary['name']}_seed{seed}.json").write_text(json.dumps(summary))
    monkeypatch.setattr(files, "STUDY_RESULTS", tmp_path)
    assert "| 0.123 ± 0.003 |" in readme.evidence_table(read_results(tmp_path / "full"))
    text = readme.with_results(readme.read("README.md"), readme.ENGLISH)
    assert re.search("over 2 seeds on .*, Top-1 0.123 ± 0.003", text)
    assert "FAIL in the mean, and for 0 of 2 seeds" in text
    assert "- **fails**: Classification keeps more than 95 %." in text


def test_a_changed_table_of_sizes_changes_the_readme(tmp_path, monkeypatch):
    table = json.loads(files.COMMITTED_SIZES.read_text())
    table["sizes"][0]["values"]["det"] = 0.1239
    monkeypatch.setattr(files, "COMMITTED_SIZES", tmp_path / "sizes.json")
    files.COMMITTED_SIZES.write_text(json.dumps(table))
    assert "| 0.124 |" in readme.with_results(readme.read("README.md"), readme.ENGLISH)


def test_one_seed_is_not_called_a_mean():
    words = {"seeds": "1", "scores": "mIoU 0.500", "verdict": "✅ PASS", "passed": "1"}
    for wording in readme.READMES.values():
        assert "±" not in readme.scores_words(words, wording)
        assert "±" in readme.scores_words(words | {"seeds": "3"}, wording)


def test_the_verdict_is_against_the_larger_of_both_baselines():
    own = forgetting.five_percent_rule("det", final=0.90, baselines=[0.92], floor=0.0)
    assert readme.results_row(own, None, 0.01)[2:] == ["0.010", "–", "0.920", "0.900", "+0.020", "98 %", "✅ PASS"]
    assert readme.results_row(own, 0.80, 0.01)[3:] == ["0.800", "0.920", "0.900", "+0.020", "98 %", "✅ PASS"]
    assert readme.results_row(own, 1.00, 0.01)[3:] == ["1.000", "0.920", "0.900", "+0.100", "90 %", "❌ FAIL"]


def test_a_page_without_its_marks_is_refused():
    with pytest.raises(UserError, match="<!-- results -->"):
        readme.between("no marks", "results", "new")
    assert readme.between("a <!-- x -->\nold\n<!-- end --> b", "x", "new") == "a <!-- x -->\nnew\n<!-- end --> b"


def test_the_study_holds_the_committed_run():
    metrics = json.loads(files.COMMITTED_METRICS.read_text())
    first = json.loads((files.STUDY_RESULTS / "full" / "replay_seed0.json").read_text())
    assert first["settings"] == metrics["settings"]
    for stage, tasks in first["metrics"].items():
        for task, values in tasks.items():
            assert values[METRIC_NAMES[task]] == metrics["stages"][stage]["metrics"][task][METRIC_NAMES[task]]


@pytest.mark.parametrize("profile", readme.STUDIED)
def test_the_runs_of_a_study_differ_in_what_they_say_only(profile):
    metrics = json.loads(files.COMMITTED_METRICS.read_text())
    paths = sorted((files.STUDY_RESULTS / profile).glob("*.json"))
    assert paths or readme.NO_RUNS in readme.read(readme.STUDY_PAGE)
    for path in paths:
        result = json.loads(path.read_text())
        wanted = get_settings(profile, seed=result["settings"]["seed"], **result["overrides"]).as_dict()
        if result["overrides"].get("joint"):  # as many steps as the three stages together (runner.planned_settings)
            wanted["epochs"] |= {"cls": result["settings"]["epochs"]["cls"]}
        assert result["settings"] == wanted, result["name"]
        assert result["initial_weights"] == metrics["initial_weights"], result["name"]
        used = {task: metrics["data_fingerprints"][task] for task in result["settings"]["tasks"]}
        assert result["data_fingerprints"] == used, result["name"]


def test_the_pictures_of_a_study_are_drawn_from_its_files_alone(tmp_path, monkeypatch):
    shutil.copytree(files.STUDY_RESULTS / "full", tmp_path / "full", ignore=shutil.ignore_patterns("*.png"))
    monkeypatch.setattr(files, "STUDY_RESULTS", tmp_path)
    studies.draw_study("full")
    pictures = {path.name: path.read_bytes() for path in (tmp_path / "full").glob("*.png")}
    assert set(pictures) == {"buffer_sizes.png", "costs.png", "remedies.png"}
    (tmp_path / "full" / "no-replay_seed0.json").unlink()
    studies.draw_study("full")
    assert all((tmp_path / "full" / name).read_bytes() != before for name, before in pictures.items())


def test_both_readmes_give_the_same_lines_to_type():
    blocks = [re.findall(r"```bash\n(.*?)```", readme.read(name), re.DOTALL) for name in readme.READMES]
    english, chinese = ([line.split("  #")[0].strip() for line in "".join(b).splitlines()] for b in blocks)
    assert english == chinese


def test_sentences_are_parted_as_their_language_does():
    """A space after a full stop in English, none after a Chinese one."""
    english, chinese = (readme.with_results(readme.read(name), readme.READMES[name]) for name in readme.READMES)
    assert "(cpu). The final value" in english
    assert "（cpu）。最終值" in chinese


def test_the_last_notebook_shows_the_committed_results():
    notebook = nbformat.read(PROJECT / "notebooks" / "06_final_evaluation.ipynb", as_version=4)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    said = "".join(output.text for output in outputs if output.output_type == "stream")
    assert forgetting.closing_report(read_metrics(files.COMMITTED_METRICS).stage_metrics) in said
    assert "the run that came with the project" not in said, "it shows an older run, not the one that is published"


def test_the_readme_is_short_and_has_two_lines_to_run():
    text = readme.read("README.md")
    assert len(text.split()) < 2000
    assert sum(line.startswith("python3 -m venv") for line in text.splitlines()) == 2


def anchors(text):
    """The anchors that GitHub gives to the headings of a page."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere_and_figures_are_light(name):
    text = readme.read(name)
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    for target in targets:
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = (files.PROJECT / name).parent / path if path else files.PROJECT / name
        assert file.exists(), target
        assert not anchor or anchor in anchors(file.read_text(encoding="utf-8")), target
        assert file.suffix != ".png" or file.stat().st_size < 400_000


def test_the_committed_weights_are_those_of_the_committed_results():
    card = json.loads(files.COMMITTED_WEIGHTS.with_suffix(".json").read_text())
    metrics = json.loads(files.COMMITTED_METRICS.read_text())
    content = checkpoint.load(files.COMMITTED_WEIGHTS)
    assert card["sha256"] == hashlib.sha256(files.COMMITTED_WEIGHTS.read_bytes()).hexdigest()
    assert card["settings"] == metrics["settings"] == content["settings"]
    final = {task: metrics["stages"]["cls"]["metrics"][task][METRIC_NAMES[task]] for task in TASKS}
    assert content["val"] == final and list(card["val"].values()) == list(final.values())
    assert files.COMMITTED_WEIGHTS.stat().st_size < 10_000_000


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.slow
@pytest.mark.real
def test_the_committed_weights_give_the_committed_results(real_root, tmp_path):
    words = ["--weights", files.COMMITTED_WEIGHTS, "--data_root", real_root, "--json", tmp_path / "m"]
    assert evaluate.evaluate_command([str(word) for word in words]) == 0
    found = json.loads((tmp_path / "m").read_text())["tasks"]
    wanted = json.loads(files.COMMITTED_METRICS.read_text())["stages"]["cls"]["metrics"]
    for task in TASKS:
        assert found[task][METRIC_NAMES[task]] == pytest.approx(wanted[task][METRIC_NAMES[task]], abs=0.01)


def test_the_log_has_one_line_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "RUN_LOG", tmp_path / "runs.csv")
    metrics = json.loads(files.COMMITTED_METRICS.read_text())
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text(json.dumps(metrics))
        run_log.log_run(tmp_path / name, "a note")
    del metrics["stages"]["cls"]
    metrics["settings"] |= {"seed": 7, "replay_per_task": 3}
    (tmp_path / "first" / "metrics.json").write_text(json.dumps(metrics))
    run_log.log_run(tmp_path / "first", "unfinished, again")
    second, first = run_log.read_log()
    assert (first["run"], first["note"], first["seed"]) == ("first", "unfinished, again", "7")
    assert json.loads(first["settings"])["replay_per_task"] == 3
    assert first["Top-1 after cls"] == first["minutes cls"] == "" and float(first["mIoU after det"]) > 0
    assert float(second["Top-1 after cls"]) > 0 and second["note"] == "a note"


def test_a_synthetic_or_unfinished_run_is_not_shown(tmp_path):
    metrics = json.loads(files.COMMITTED_METRICS.read_text())
    (tmp_path / "metrics.json").write_text(json.dumps(metrics | {"source": "synthetic mini sets"}))
    with pytest.raises(UserError, match="real photographs"):
        publish_run.take_over(tmp_path)
    del metrics["stages"]["cls"]
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(UserError, match="all three stages"):
        publish_run.take_over(tmp_path)


@pytest.fixture
def finished_run(tmp_path_factory):
    """A folder like that of a finished run: another Top-1 than the committed one, weights and figures of few bytes."""
    run = tmp_path_factory.mktemp("run")
    metrics = json.loads(files.COMMITTED_METRICS.read_text())
    metrics["stages"]["cls"]["metrics"]["cls"]["Top-1"] = 0.987
    (run / "metrics.json").write_text(json.dumps(metrics))
    (run / "stage3_classification.pt").write_bytes(b"weights")
    shutil.copyfile(files.COMMITTED_SIZES, run / "sizes.json")
    (run / "figures").mkdir()
    for name in ("architecture.png", "all_curves.png", "with_and_without_replay.png"):
        (run / "figures" / name).write_bytes(name.encode())
    return run


def test_a_finished_run_becomes_the_one_that_is_shown(finished_run, copied_project):
    assert cli_main.main(["publish", str(finished_run)]) == 0
    assert "| 0.987 | 0.987 |" in readme.read("README.md")  # own stage and final value
    card = json.loads((copied_project / "data" / "weights" / "three_tasks.json").read_text())
    assert card["val"]["Top-1"] == 0.987 and card["sha256"] == hashlib.sha256(b"weights").hexdigest()
    assert files.COMMITTED_WEIGHTS.read_bytes() == b"weights"
    assert (copied_project / "figures" / "all_curves.png").read_bytes() == b"all_curves.png"


def test_a_run_that_lacks_a_figure_changes_nothing(finished_run, copied_project):
    (finished_run / "figures" / "with_and_without_replay.png").unlink()
    before = contents(copied_project)
    with pytest.raises(UserError, match=r"with_and_without_replay\.png cannot be read"):
        publish_run.take_over(finished_run)
    assert contents(copied_project) == before


def test_a_run_whose_notebook_has_other_code_changes_nothing(finished_run, copied_project):
    shutil.copy(files.NOTEBOOKS / "01_data_exploration.ipynb", finished_run)
    other = nbformat.read(files.NOTEBOOKS / "05_stage3_classification.ipynb", as_version=4)
    next(cell for cell in other.cells if cell.cell_type == "code").source += "\nprint(1)"
    nbformat.write(other, finished_run / "05_stage3_classification.ipynb")
    before = contents(copied_project)
    with pytest.raises(UserError, match=r"05_stage3_classification\.ipynb has other code"):
        publish_run.take_over(finished_run)
    assert contents(copied_project) == before


def cells(text, source, outputs=(), count=None):
    code = nbformat.v4.new_code_cell(source, outputs=list(outputs), execution_count=count)
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text), code])


def test_outputs_are_taken_over_and_text_that_was_edited_since_stays(tmp_path):
    said = nbformat.v4.new_output("stream", text="42\n")
    nbformat.write(cells("old text", "print(42)", [said], 1), tmp_path / "run.ipynb")
    edited = cells("new text", "print(42)")
    edited.cells[1].metadata["tags"] = ["nbval-ignore-output"]
    nbformat.write(edited, tmp_path / "book.ipynb")
    made = publish_run.with_outputs(tmp_path / "book.ipynb", tmp_path / "run.ipynb")
    text, code = nbformat.reads(made, as_version=4).cells
    assert (text.source, code.outputs, code.execution_count) == ("new text", [said], 1)
    assert code.metadata["tags"] == ["nbval-ignore-output"], "the executed copy is older than the tag"


def test_outputs_of_other_code_are_refused(tmp_path):
    nbformat.write(cells("text", "print(41)", count=1), tmp_path / "run.ipynb")
    nbformat.write(cells("text", "print(42)"), tmp_path / "book.ipynb")
    with pytest.raises(UserError, match=r"book\.ipynb has other code"):
        publish_run.with_outputs(tmp_path / "book.ipynb", tmp_path / "run.ipynb")


def stored_links():
    """Of every notebook: its name, the row below its title, and the address in its first cell."""
    for path in sorted(files.NOTEBOOKS.glob("*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        first = next(cell for cell in cells if cell.cell_type == "code")
        yield path.stem, cells[0].source.split("\n\n")[1], links.ADDRESS.search(first.source)[1]


def test_all_notebooks_and_both_readmes_name_one_address():
    addresses = {address for _, _, address in stored_links()}
    assert len(addresses) == 1
    for name, row, address in stored_links():
        assert row == links.navigation(name, address)
    made = links.badge("06_final_evaluation", address) if (address := addresses.pop()) else ""
    for page in readme.READMES:
        assert readme.between(readme.read(page), "badge", made) == readme.read(page)


def test_the_address_is_set_everywhere_at_once_and_can_be_changed(tmp_path, monkeypatch):
    shutil.copytree(files.NOTEBOOKS, tmp_path / "notebooks")
    for page in (*readme.READMES, readme.REPORT_PAGE):
        shutil.copyfile(files.PROJECT / page, tmp_path / page)
    monkeypatch.setattr(files, "PROJECT", tmp_path)
    monkeypatch.setattr(files, "NOTEBOOKS", tmp_path / "notebooks")
    before = [nbformat.read(path, as_version=4) for path in sorted(files.NOTEBOOKS.glob("*.ipynb"))]
    for name in ("someone/first", "else-where/second.try"):
        assert cli_main.main(["links", name]) == 0
        test_all_notebooks_and_both_readmes_name_one_address()
        rows = list(stored_links())
        assert len(rows) == 6 and all(address == f"https://github.com/{name}" for _, _, address in rows)
        assert f"colab.research.google.com/github/{name}/blob/main/notebooks/03_stage1" in rows[2][1]
        assert f"github/{name}/blob/main/notebooks/06" in readme.read("README.zh-TW.md")
    for old, path in zip(before, sorted(files.NOTEBOOKS.glob("*.ipynb")), strict=True):
        assert [cell.get("outputs") for cell in nbformat.read(path, as_version=4).cells] == [
            cell.get("outputs") for cell in old.cells
        ]


@pytest.mark.parametrize("name", ["https://github.com/a/b", "a", "a/b/c", "a b/c", "", "../..", "a/..", "./b", "../b"])
def test_what_is_no_address_is_refused(name):
    with pytest.raises(UserError, match="OWNER/NAME"):
        links.set_address(name)


def test_the_headline_counts_runs_with_ten_stored_images(monkeypatch):
    """Two of them replay ten images; one has no replay, and one stores all images."""
    changes = {
        "replay": {},
        "lwf": {"buffer_size": 10, "replay_per_task": 0},
        "memory10": {"buffer_size": 10},
        "memory10-lwf": {"buffer_size": 10, "lwf_weight": 1.0},
    }
    results = [SimpleNamespace(name=name, settings=Settings(**change)) for name, change in changes.items()]
    monkeypatch.setattr(readme, "read_results", lambda folder: results if folder.name == "full" else [])
    monkeypatch.setattr(readme, "run_names", lambda results: [run.name for run in results])
    monkeypatch.setattr(readme, "passes", lambda results, name: name in ("replay", "lwf", "memory10-lwf"))
    words = readme.few_images_words(readme.ENGLISH)
    assert words == "With 10 stored images per task instead of 240, 1 of 2 runs pass it."
    assert "2 次執行中有 1 次通過" in readme.few_images_words(readme.CHINESE)
