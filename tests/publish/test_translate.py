"""The notebooks in Traditional Chinese: complete, in step with the English ones, and the same but for their text."""

import re

import nbformat
import pytest
from babel.messages.catalog import Catalog

from mtl_utils import files
from mtl_utils.files import UserError
from mtl_utils.publish import translate

PATHS = translate.english_notebooks()
CODE = re.compile(r"`[^`\n]+`")
LINK = re.compile(r"\]\(([^)#]+)")


def read(path):
    return nbformat.read(path, as_version=4)


def texts(notebook):
    return [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]


def test_paragraphs_are_cut_at_empty_lines_but_not_inside_code():
    text = "one\ntwo\n\n```python\na\n\n\nb\n```\n\n\nthree `x`"
    assert translate.paragraphs(text) == ["one\ntwo", "```python\na\n\n\nb\n```", "three `x`"]


def test_a_row_of_links_needs_no_translation():
    row = "[![Open in Colab](https://c/a.svg)](https://c/x.ipynb) · [← 01_x](01_x.ipynb) · [03_y →](03_y.ipynb)"
    assert translate.to_translate(f"# A\n\n{row}\n\nText with [a link](b.md).") == ["# A", "Text with [a link](b.md)."]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_every_paragraph_has_a_translation_and_no_translation_is_left_over(path):
    wanted = {paragraph for text in texts(read(path)) for paragraph in translate.to_translate(text)}
    table = translate.read_table(translate.table_of(path.stem))
    assert wanted == {message.id for message in table if message.id}


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_the_stored_notebook_is_the_english_one_with_other_text(path):
    """`python -m mtl_utils translate` makes it."""
    expected = read(path)
    table = translate.table_of(path.stem)
    translate.translate_notebook(expected, translate.read_table(table), table.name)
    assert read(translate.translated(path)) == expected


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_code_links_and_numbers_are_those_of_the_english_text(path):
    for message in translate.read_table(translate.table_of(path.stem)):
        if not message.id:
            continue
        assert sorted(CODE.findall(message.id)) == sorted(CODE.findall(message.string)), message.id
        assert LINK.findall(message.id) == LINK.findall(message.string), message.id
        rows = [len(re.findall(r"^\|", text, re.MULTILINE)) for text in (message.id, message.string)]
        assert rows[0] == rows[1], message.id


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_links_lead_somewhere(path):
    built = translate.translated(path)
    for text in texts(read(built)):
        for target in LINK.findall(text):
            assert "://" in target or (built.parent / target).exists(), target


def test_a_paragraph_that_also_stands_within_another_one_is_translated_in_its_place():
    table = Catalog(locale="zh_TW")
    table.add("Run it all.", "全部執行 (Run)。")
    table.add("Run", "執行")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("Run it all.\n\nRun")])
    translate.translate_notebook(notebook, table, "01.po")
    assert notebook.cells[0].source == "全部執行 (Run)。\n\n執行"


@pytest.mark.parametrize("state", ["missing", "empty", "fuzzy"])
def test_a_paragraph_without_a_translation_is_named(state):
    table = Catalog(locale="zh_TW")
    if state != "missing":
        table.add("A cow.", "" if state == "empty" else "一頭牛。", flags=["fuzzy"] if state == "fuzzy" else [])
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("A cow.")])
    with pytest.raises(UserError, match=r"^01\.po lacks a translation of 'A cow\.': add it\.$"):
        translate.translate_notebook(notebook, table, "01.po")


def test_a_missing_table_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "NOTEBOOKS", tmp_path)
    with pytest.raises(UserError, match=r"02_model\.po is missing"):
        translate.read_table(translate.table_of("02_model"))


def test_code_and_outputs_stay():
    path = files.NOTEBOOKS / "01_data_exploration.ipynb"
    english, chinese = read(path), read(translate.translated(path))
    kept = [cell for cell in english.cells if cell.cell_type == "code"]
    assert kept == [cell for cell in chinese.cells if cell.cell_type == "code"]
