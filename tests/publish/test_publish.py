"""What the repository shows comes from the committed metrics.json, and both READMEs say the same."""

import hashlib
import json
import re
import shutil

import nbformat
import pytest

from mtl_utils import checkpoint, files, forgetting
from mtl_utils.cli import evaluate
from mtl_utils.cli import main as cli_main
from mtl_utils.experiments import results as results_module
from mtl_utils.files import PROJECT, UserError
from mtl_utils.plots import studies
from mtl_utils.publish import links, readme
from mtl_utils.publish import log as run_log
from mtl_utils.publish import run as publish_run
from mtl_utils.settings import get_settings
from mtl_utils.tasks import METRIC_NAMES, TASKS


@pytest.mark.parametrize("name", readme.README_WORDS)
def test_readme_shows_the_committed_results(name):
    text = readme.read(name)
    assert readme.with_results(text, readme.README_WORDS[name]) == text, "run `python -m mtl_utils publish`"


def test_a_changed_result_changes_the_readme(tmp_path, monkeypatch):
    metrics = json.loads(files.COMMITTED_METRICS.read_text())
    metrics["stages"]["cls"]["metrics"]["seg"]["mIoU"] = 0.123
    monkeypatch.setattr(files, "COMMITTED_METRICS", tmp_path / "metrics.json")
    files.COMMITTED_METRICS.write_text(json.dumps(metrics))
    assert "| 0.123 |" in readme.with_results(readme.read("README.md"), readme.README_WORDS["README.md"])


def test_a_changed_study_changes_the_readme(tmp_path, monkeypatch):
    summary = json.loads((files.STUDY_RESULTS / "full" / "replay_seed0.json").read_text())
    (tmp_path / "full").mkdir()
    for seed, value in enumerate((0.121, 0.125)):
        summary["metrics"]["cls"]["cls"]["Top-1"] = value
        summary["settings"]["seed"] = seed
        (tmp_path / "full" / f"replay_seed{seed}.json").write_text(json.dumps(summary))
    monkeypatch.setattr(files, "STUDY_RESULTS", tmp_path)
    text = readme.with_results(readme.read("README.md"), readme.README_WORDS["README.md"])
    assert "| 0.123 ± 0.003 |" in text and re.search("over 2 seeds: .*, Top-1 0.123 ± 0.003", text)
    assert "– in the mean, and for 0 of 2 seeds" in text


def test_the_study_holds_the_committed_run():
    metrics = json.loads(files.COMMITTED_METRICS.read_text())
    first = json.loads((files.STUDY_RESULTS / "full" / "replay_seed0.json").read_text())
    assert first["settings"] == metrics["settings"]
    for stage, tasks in first["metrics"].items():
        for task, values in tasks.items():
            assert values[METRIC_NAMES[task]] == metrics["stages"][stage]["metrics"][task][METRIC_NAMES[task]]


@pytest.mark.parametrize("profile", readme.STUDIED)
def test_the_runs_of_a_study_differ_in_what_they_say_only(profile):
    metrics, results = (
        json.loads(files.COMMITTED_METRICS.read_text()),
        results_module.read_results(files.STUDY_RESULTS / profile),
    )
    assert results
    for result in results:
        wanted = get_settings(profile, seed=result["settings"]["seed"], **result["overrides"]).as_dict()
        if result["overrides"].get("joint"):  # as many steps as the three stages together (study.planned)
            wanted["epochs"] |= {"cls": result["settings"]["epochs"]["cls"]}
        assert result["settings"] == wanted, result["name"]
        assert (result["data_fingerprint"], result["initial_weights"]) == (
            metrics["data_fingerprint"],
            metrics["initial_weights"],
        )


def test_the_pictures_of_a_study_are_drawn_from_its_files_alone(tmp_path, monkeypatch):
    shutil.copytree(files.STUDY_RESULTS / "quick", tmp_path / "quick", ignore=shutil.ignore_patterns("*.png"))
    monkeypatch.setattr(files, "STUDY_RESULTS", tmp_path)
    studies.draw_study("quick")
    pictures = {path.name: path.read_bytes() for path in (tmp_path / "quick").glob("*.png")}
    assert set(pictures) == {"memory.png", "remedies.png"}
    (tmp_path / "quick" / "no-replay_seed0.json").unlink()
    studies.draw_study("quick")
    assert all((tmp_path / "quick" / name).read_bytes() != before for name, before in pictures.items())


def test_both_readmes_give_the_same_lines_to_type():
    blocks = [re.findall(r"```bash\n(.*?)```", readme.read(name), re.DOTALL) for name in readme.README_WORDS]
    english, chinese = ([line.split("  #")[0].strip() for line in "".join(b).splitlines()] for b in blocks)
    assert english == chinese


def test_the_last_notebook_shows_the_committed_results():
    notebook = nbformat.read(PROJECT / "notebooks" / "06_final_evaluation.ipynb", as_version=4)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    said = "".join(output.text for output in outputs if output.output_type == "stream")
    assert forgetting.closing_report(forgetting.read_metrics(files.COMMITTED_METRICS)) in said
    assert "the run that came with the project" not in said, "it shows an older run, not the one that is published"


def test_figures_of_the_readmes_are_there():
    for name in readme.README_WORDS:
        for path in re.findall(r"!\[.*?\]\((.*?)\)", readme.read(name)):
            assert (files.PROJECT / path).stat().st_size < 400_000


def test_the_committed_weights_are_those_of_the_committed_results():
    card = json.loads(files.COMMITTED_WEIGHTS.with_suffix(".json").read_text())
    metrics = json.loads(files.COMMITTED_METRICS.read_text())
    content = checkpoint.load(files.COMMITTED_WEIGHTS)
    assert card["sha256"] == hashlib.sha256(files.COMMITTED_WEIGHTS.read_bytes()).hexdigest()
    assert card["settings"] == metrics["settings"] == content["settings"]
    final = {task: metrics["stages"]["cls"]["metrics"][task][METRIC_NAMES[task]] for task in TASKS}
    assert content["val"] == final and list(card["val"].values()) == list(final.values())
    assert files.COMMITTED_WEIGHTS.stat().st_size < 10_000_000


@pytest.mark.skipif(not (PROJECT.parent / "shared" / "data").exists(), reason="needs the real sets beside the project")
def test_the_committed_weights_give_the_committed_results(tmp_path):
    root = str(PROJECT.parent / "shared" / "data")
    assert (
        evaluate.evaluate_command(
            ["--weights", str(files.COMMITTED_WEIGHTS), "--data_root", root, "--json", str(tmp_path / "m")]
        )
        == 0
    )
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


def cells(text, source, outputs=(), count=None):
    code = nbformat.v4.new_code_cell(source, outputs=list(outputs), execution_count=count)
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text), code])


def test_outputs_are_taken_over_and_text_that_was_edited_since_stays(tmp_path):
    said = nbformat.v4.new_output("stream", text="42\n")
    nbformat.write(cells("old text", "print(42)", [said], 1), tmp_path / "run.ipynb")
    nbformat.write(cells("new text", "print(42)"), tmp_path / "book.ipynb")
    publish_run.take_outputs(tmp_path / "run.ipynb", tmp_path / "book.ipynb")
    text, code = nbformat.read(tmp_path / "book.ipynb", as_version=4).cells
    assert (text.source, code.outputs, code.execution_count) == ("new text", [said], 1)


def test_outputs_of_other_code_are_refused(tmp_path):
    nbformat.write(cells("text", "print(41)", count=1), tmp_path / "run.ipynb")
    nbformat.write(cells("text", "print(42)"), tmp_path / "book.ipynb")
    with pytest.raises(UserError, match=r"book\.ipynb has other code"):
        publish_run.take_outputs(tmp_path / "run.ipynb", tmp_path / "book.ipynb")


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
    for page in readme.README_WORDS:
        assert readme.between(readme.read(page), "badge", made) == readme.read(page)


def test_the_address_is_set_everywhere_at_once_and_can_be_changed(tmp_path, monkeypatch):
    shutil.copytree(files.NOTEBOOKS, tmp_path / "notebooks")
    for page in readme.README_WORDS:
        shutil.copyfile(files.PROJECT / page, tmp_path / page)
    monkeypatch.setattr(files, "PROJECT", tmp_path)
    monkeypatch.setattr(files, "NOTEBOOKS", tmp_path / "notebooks")
    before = [nbformat.read(path, as_version=4) for path in sorted(files.NOTEBOOKS.glob("*.ipynb"))]
    for name in ("someone/first", "else.where/second-try"):
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


@pytest.mark.parametrize("name", ["https://github.com/a/b", "a", "a/b/c", "a b/c", ""])
def test_what_is_no_address_is_refused(name):
    with pytest.raises(UserError, match="OWNER/NAME"):
        links.set_address(name)
