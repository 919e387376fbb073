"""What is noted of the code and the machine that made a result."""

import subprocess

import torch

from mtl_utils import files
from mtl_utils.provenance import git, provenance


def commit_all(folder):
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "one"]):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=folder, check=True)


def test_the_commit_and_whether_the_code_has_changed_since(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PROJECT", tmp_path)
    (tmp_path / "mtl_utils").mkdir()
    code, page = tmp_path / "mtl_utils" / "model.py", tmp_path / "README.md"
    for path in (code, page, tmp_path / "eval.py"):
        path.write_text("one")
    commit_all(tmp_path)
    found = provenance()
    assert found["commit"] == git("rev-parse", "HEAD") and len(found["commit"]) == 40
    assert found["changed"] is False
    page.write_text("a page changes no number")
    assert provenance()["changed"] is False
    code.write_text("two")
    assert provenance()["changed"] is True


def test_outside_of_a_repository_nothing_is_claimed(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PROJECT", tmp_path)
    found = provenance()
    assert found["commit"] is None and found["changed"] is None
    monkeypatch.setenv("PATH", "")  # nor without git
    assert provenance()["commit"] is None


def test_versions_and_threads_are_those_in_use():
    found = provenance()
    assert torch.__version__.startswith(found["packages"]["torch"].split("+")[0])
    assert found["threads"] == torch.get_num_threads()
    assert all(found["packages"].values())


def test_a_finished_stage_says_what_made_it(trained_run):
    result = trained_run.result("cls")
    assert result.provenance["packages"] == provenance()["packages"]
