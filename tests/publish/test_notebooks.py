"""The stored notebooks: run top to bottom, nothing private in them, short cells, and how they are executed."""

import json
import re
import signal
import statistics
import subprocess
import sys
import time

import nbformat
import pytest
from nbconvert import HTMLExporter

from mtl_utils import files
from mtl_utils.files import PROJECT, UserError
from mtl_utils.publish import notebooks

PATHS = sorted(files.NOTEBOOKS.glob("*.ipynb"))
NAMES = [
    "01_data_exploration",
    "02_model",
    "03_stage1_segmentation",
    "04_stage2_detection",
    "05_stage3_classification",
    "06_final_evaluation",
]


def code_cells(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def test_the_six_are_there():
    assert [path.stem for path in PATHS] == NAMES


def without_pictures(output: dict) -> dict:
    """What can be read of an output: in a picture's base64 any word stands somewhere by chance."""
    return {**output, "data": {k: v for k, v in output.get("data", {}).items() if k != "image/png"}}


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_stored_outputs_come_from_one_run_from_top_to_bottom(path):
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = json.dumps([without_pictures(output) for cell in cells for output in cell.outputs])
    assert '"output_type": "error"' not in outputs
    assert not re.search(r"/(root|home|work|tmp|Users|content)/", outputs), "an absolute path in an output"
    assert not re.search(r"0x[0-9a-f]{8,}", outputs), "a memory address in an output"
    assert path.stat().st_size < 1_500_000


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_cells_are_short_and_begin_alike(path):
    cells = code_cells(path)
    lengths = [len(cell.source.splitlines()) for cell in cells]
    assert max(lengths) <= 25 and statistics.median(lengths) <= 8
    assert [cell.source for cell in cells[:2]] == [cell.source for cell in code_cells(PATHS[0])[:2]]


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_pictures_are_light(path):
    for cell in code_cells(path):
        for output in cell.outputs:
            picture = output.get("data", {}).get("image/png", "")
            assert len(picture) * 3 / 4 < 150_000


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_each_says_what_it_teaches_and_needs(path):
    cells = nbformat.read(path, as_version=4).cells
    title, row, *_ = cells[0].source.split("\n\n")
    assert title.startswith(f"# {PATHS.index(path) + 1} · ") and ".ipynb)" in row
    assert "**What you will learn**" in cells[0].source
    assert "inute" in cells[0].source.split("**What you need**")[1], "how long it takes"
    assert any("## Summary" in cell.source for cell in cells)


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_prose_stands_before_and_after_each_figure(path):
    cells = nbformat.read(path, as_version=4).cells
    for i, cell in enumerate(cells):
        if cell.cell_type == "code" and re.search(r"^show\w*\(", cell.source, re.MULTILINE):
            before, after = cells[max(0, i - 2) : i], cells[i + 1 : i + 3]
            for near in (before, after):
                assert "markdown" in [other.cell_type for other in near], cell.source


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_three_exercises_with_a_cell_for_the_answer_and_a_folded_one(path):
    """tests/lab/test_exercises.py runs the folded answers."""
    cells = nbformat.read(path, as_version=4).cells
    (start,) = [i for i, cell in enumerate(cells) if cell.source.startswith("## Exercises")]
    exercises = cells[start + 1 :]
    assert len(exercises) == 9
    for number, (question, own, answer) in enumerate(zip(*[iter(exercises)] * 3, strict=True), start=1):
        assert question.source.startswith(f"**{number}.** ") and "`answer`" in question.source
        assert f'exercises.check("{path.stem[:2]}.{number}", answer' in own.source
        assert "answer = None  # your code" in own.source
        assert answer.source.startswith("<details><summary>Answer</summary>") and "```python" in answer.source


def write_notebook(path, source):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    nbformat.write(notebook, path)


@pytest.mark.slow
@pytest.mark.notebooks
def test_executed_copies_are_left_and_the_original_is_not_touched(tmp_path, monkeypatch):
    folder = tmp_path / "notebooks"
    folder.mkdir()
    write_notebook(folder / "01_x.ipynb", "print(6 * 7)")
    before = (folder / "01_x.ipynb").read_bytes()
    monkeypatch.setattr(files, "NOTEBOOKS", folder)
    notebooks.execute_all(tmp_path / "out")
    assert nbformat.read(tmp_path / "out" / "01_x.ipynb", 4).cells[0].outputs[0].text == "42\n"
    assert "42" in (tmp_path / "out" / "01_x.html").read_text()
    assert "42" in (tmp_path / "out" / notebooks.REPORT).read_text()
    assert (folder / "01_x.ipynb").read_bytes() == before


def test_the_report_holds_all_notebooks_and_its_contents_lead_to_their_sections():
    whole = notebooks.joined([nbformat.read(path, as_version=4) for path in PATHS])
    assert len({cell.id for cell in whole.cells}) == len(whole.cells)
    page, _ = HTMLExporter().from_notebook_node(whole)
    links = re.findall(r'href="#(section\d+)"', page)
    assert len(links) > 25
    for link in links:
        assert page.count(f'id="{link}"') == 1
    for title in ("1 · The data", "Training", "The same image after each stage"):
        assert title in whole.cells[0].source
    assert "Setup" not in whole.cells[0].source


@pytest.mark.slow
@pytest.mark.notebooks
def test_a_failing_cell_is_one_sentence(tmp_path):
    write_notebook(tmp_path / "02_y.ipynb", "1 / 0")
    with pytest.raises(UserError, match=r"02_y\.ipynb stopped at a cell with ZeroDivisionError"):
        notebooks.execute(tmp_path / "02_y.ipynb")


@pytest.mark.slow
@pytest.mark.notebooks
def test_ctrl_c_ends_in_one_sentence(tmp_path):
    started = tmp_path / "started"
    write_notebook(tmp_path / "03_z.ipynb", f"open({str(started)!r}, 'w').close()\nimport time\ntime.sleep(60)")
    lines = "import sys, pathlib; from mtl_utils.cli.guard import guarded; from mtl_utils.publish import notebooks; "
    lines += "sys.exit(guarded(lambda: notebooks.execute(pathlib.Path(sys.argv[1]))))"
    command = [sys.executable, "-c", lines, tmp_path / "03_z.ipynb"]
    process = subprocess.Popen(command, cwd=PROJECT, stderr=subprocess.PIPE, text=True)
    while not started.exists() and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and said.strip().endswith("stopped") and "Traceback" not in said


@pytest.mark.slow
@pytest.mark.notebooks
def test_a_dead_kernel_is_one_sentence(tmp_path):
    write_notebook(tmp_path / "04_d.ipynb", "import os\nos._exit(1)")
    with pytest.raises(UserError, match=r"04_d\.ipynb: its kernel died"):
        notebooks.execute(tmp_path / "04_d.ipynb")


def test_bars_that_were_wiped_out_are_not_stored():
    def stream(text):
        return nbformat.v4.new_output("stream", name="stderr", text=text)

    shown = nbformat.v4.new_output(
        "display_data", data={"text/plain": "evaluating:   0%|          | 0/6 [00:00<?, ?it/s]"}
    )
    outputs = [
        stream("evaluating:  50%|#####     | 3/6"),
        shown,
        stream("epoch: 100%|##########| 6/6"),
        stream("75 % kept"),
    ]
    cell = nbformat.v4.new_code_cell("1", outputs=outputs)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("text"), cell])
    kept = notebooks.without_stale_bars(notebook).cells[1].outputs
    assert [output.text for output in kept] == ["epoch: 100%|##########| 6/6", "75 % kept"]
