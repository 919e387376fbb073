"""TEACHING.md: the sections it names are there, and its code runs."""

import re

import nbformat
import pytest

from mtl_utils import files

PAGE = files.PROJECT / "TEACHING.md"


def headings() -> dict[str, set[str]]:
    """The headings of every notebook, by its number."""
    found = {}
    for path in [*files.NOTEBOOKS.glob("0*.ipynb"), files.NOTEBOOKS / "lab" / "why_it_forgets.ipynb"]:
        cells = nbformat.read(path, as_version=4).cells
        text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
        found[path.stem[:2] if path.parent == files.NOTEBOOKS else "lab"] = set(
            re.findall(r"^#{2,3} (.+)$", text, re.MULTILINE)
        )
    return found


def test_every_section_that_is_named_is_there():
    titles = headings()
    named = re.findall(r'\b(0\d|lab), "([^"]+)"', PAGE.read_text(encoding="utf-8"))
    assert len(named) > 20
    for number, title in named:
        assert title in titles[number], (number, title)


def test_each_lesson_lasts_ninety_minutes():
    parts = PAGE.read_text(encoding="utf-8").split("\n## ")
    lessons = [part for part in parts if part.startswith(("First lesson", "Second lesson"))]
    for lesson in lessons:
        minutes = re.findall(r"^\| (\d+) \|", lesson, re.MULTILINE)
        assert sum(map(int, minutes)) == 90


@pytest.mark.slow
def test_the_code_of_the_hand_in_runs(tmp_path, monkeypatch, capsys):
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[1]
    assert '"quick"' in code and '"runs/ten"' in code
    monkeypatch.chdir(tmp_path)
    exec(code.replace('"quick"', '"smoke"'), {})
    assert "mIoU" in capsys.readouterr().out and (tmp_path / "runs" / "ten" / "metrics.json").exists()
