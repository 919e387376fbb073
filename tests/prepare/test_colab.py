"""Where notebooks run: versions are checked everywhere, and in Colab what is missing is put in place."""

import os
import re
import shutil
import subprocess
import sys
import types
from importlib.metadata import version

import nbformat
import pytest

from mtl_utils import files
from mtl_utils.files import PROJECT, UserError
from mtl_utils.prepare import colab, pack, synthetic
from mtl_utils.publish import links, notebooks

COLAB = {"COLAB_RELEASE_TAG": "release-colab", "COLAB_GPU": ""}
KEPT = shutil.ignore_patterns(".git", ".venv*", "runs", "synthetic", "__pycache__", ".*_cache", "mini_*", "imagenette*")


@pytest.fixture
def calls(monkeypatch) -> list:
    """What would have been installed or fetched."""
    made = []
    monkeypatch.setattr(subprocess, "run", lambda command, **_: made.append(command[4:]))
    monkeypatch.setattr(pack, "fetch_sets", lambda root: made.append(root))
    monkeypatch.delenv("MTL_DATA_ROOT", raising=False)
    monkeypatch.delenv("COLAB_RELEASE_TAG", raising=False)
    return made


def lacking(monkeypatch, *lines):
    monkeypatch.setattr(colab, "unmet", lambda _: list(lines))


def test_the_requirements_are_met_here():
    assert colab.unmet(colab.REQUIREMENTS.read_text()) == []
    assert len(colab.LINE.findall(colab.REQUIREMENTS.read_text())) == 13


def test_missing_and_old_packages_are_found():
    lines = colab.unmet("torch>=2.6\ntorch>=99.1\nno-such-package>=1\npytest>=7.4\n")
    assert lines == ["torch>=99.1", "no-such-package>=1"]
    assert colab.meets("torch", version("torch").split("+")[0])


def test_numbers_compare_as_numbers_not_as_text():
    assert colab.numbers("2.11.0+cu128") == [2, 11, 0] > colab.numbers("2.6")
    assert colab.numbers("8.0.0rc1") == [8, 0, 0]
    assert colab.numbers("unknown") == []


def test_the_first_cell_needs_no_installed_package():
    """Without site-packages (-S), as in Colab before anything is installed."""
    command = [sys.executable, "-S", "-c", "import mtl_utils.prepare.colab"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_elsewhere_nothing_is_done_but_checking(calls, monkeypatch):
    colab.prepare(drive=True)
    lacking(monkeypatch, "seaborn>=0.13")
    with pytest.raises(UserError, match=r"seaborn>=0\.13.*pip install -r"):
        colab.prepare()
    assert calls == [] and "MTL_RUNS" not in os.environ


def test_colab_gets_what_is_missing_but_never_another_torch(calls, monkeypatch, tmp_path):
    monkeypatch.setenv("COLAB_RELEASE_TAG", "x")
    monkeypatch.setenv("MTL_DATA_ROOT", str(tmp_path))
    lacking(monkeypatch, "torch>=2.6", "torchvision>=0.21", "ipywidgets>=8", "jupyterlab>=4", "pycocotools>=2.0.8")
    colab.prepare()
    assert calls == [["--quiet", "pycocotools>=2.0.8"]]


def test_colab_fetches_the_real_sets_unless_others_are_named(calls, monkeypatch):
    monkeypatch.setenv("COLAB_RELEASE_TAG", "x")
    colab.prepare()
    assert calls == [PROJECT / "data"]


def test_runs_lie_on_drive_when_it_is_asked_for(calls, monkeypatch):
    monkeypatch.setenv("COLAB_RELEASE_TAG", "x")
    monkeypatch.setenv("MTL_RUNS", "elsewhere")
    mounted = []
    module = types.SimpleNamespace(drive=types.SimpleNamespace(mount=mounted.append))
    monkeypatch.setitem(sys.modules, "google.colab", module)
    monkeypatch.setattr(pack, "write_pack", lambda root, path: calls.append(path))
    colab.prepare()
    assert os.environ["MTL_RUNS"] == "elsewhere" and mounted == []
    colab.prepare(drive=True)
    assert mounted == ["/content/drive"]
    assert os.environ["MTL_RUNS"].replace("\\", "/") == "/content/drive/MyDrive/mtl_runs"


def test_sets_lie_on_drive_when_it_is_asked_for(calls, own_root, tmp_path, monkeypatch):
    """The first notebook's machine fetches and keeps them, the next one's takes them from there."""
    monkeypatch.setattr(colab, "DRIVE", str(tmp_path / "drive"))
    monkeypatch.setattr(pack, "ADDRESS", tmp_path / "pack.txt")
    kept = tmp_path / "drive" / "MyDrive" / "mtl_sets_official.zip"
    colab.put_sets(own_root, drive=False)
    assert calls == [own_root] and not kept.exists()
    colab.put_sets(own_root, drive=True)
    assert calls == [own_root] * 2 and kept.exists()
    second = tmp_path / "second machine"
    colab.put_sets(second, drive=True)
    assert calls == [own_root] * 2, "nothing is fetched again"
    found = sorted(path.relative_to(second) for path in second.rglob("*.jp*g"))
    assert found == sorted(path.relative_to(own_root) for path in own_root.rglob("*.jp*g")) and found
    (tmp_path / "pack.txt").write_text("https://example.org/sets.zip " + 64 * "a")
    colab.put_sets(own_root, drive=True)
    assert calls == [own_root] * 3, "the project names other sets now"
    kept.write_bytes(b"damaged")
    (tmp_path / "pack.txt").unlink()
    with pytest.raises(UserError, match=r"is no pack or is damaged .* delete .*mtl_sets_official.zip"):
        colab.put_sets(tmp_path / "third machine", drive=True)


def test_a_full_drive_does_not_stop_a_notebook(calls, tmp_path, monkeypatch, capsys):
    def full(root, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pack, "write_pack", full)
    monkeypatch.setattr(colab, "DRIVE", str(tmp_path))
    colab.put_sets(tmp_path / "data", drive=True)
    assert calls == [tmp_path / "data"] and "could not be kept on Google Drive" in capsys.readouterr().out


def repository(folder):
    """A repository that holds the project as it is here, committed or not."""
    shutil.copytree(PROJECT, folder, ignore=KEPT)
    git = ["git", "-C", folder, "-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message=all"]):
        subprocess.run([*git, *command], check=True)
    return folder


PATHS = sorted(files.NOTEBOOKS.glob("*.ipynb"))
WHOLE, NEXT = PATHS[2:4]  # the notebook that trains stage 1, and the one that needs what it leaves


def linked(path, address):
    """A notebook as it is once the project has an address."""
    notebook = nbformat.read(path, as_version=4)
    links.link_notebook(notebook, path.stem, address)
    return notebook


def beginning(notebook):
    """A notebook's cells up to the second with code: all that depends on the machine."""
    numbers = [i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    return notebook.cells[: numbers[1] + 1]


def execute_in(folder, notebook):
    """Execute a notebook in an empty folder, as Colab does."""
    folder.mkdir()
    nbformat.write(notebook, folder / "notebook.ipynb")
    notebooks.execute(folder / "notebook.ipynb")
    assert (folder / "project" / "mtl_utils").is_dir()


@pytest.mark.slow
@pytest.mark.notebooks
def test_notebooks_run_in_colab_from_an_empty_folder(tmp_path, monkeypatch):
    """Each on a machine of its own, as Colab lends them; what they share lies in the folder of runs.

    One is executed wholly, of the next the beginning, which is that of all.
    """
    synthetic.write_synthetic(tmp_path / "data")
    address = repository(tmp_path / "origin").as_uri()
    for key, value in COLAB.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("MTL_DATA_ROOT", str(tmp_path / "data"))
    monkeypatch.setenv("MTL_RUN", str(tmp_path / "run"))
    execute_in(tmp_path / "first machine", linked(WHOLE, address))
    assert (tmp_path / "run" / "stage1_segmentation.pt").exists()
    notebook = linked(NEXT, address)
    question = "import mtl_utils\nassert Path(mtl_utils.__file__).is_relative_to(here / 'project')\n"
    question += "assert run.finished('seg') and not run.finished('det')"
    notebook.cells = [*beginning(notebook), nbformat.v4.new_code_cell(question)]
    execute_in(tmp_path / "second machine", notebook)


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_all_notebooks_begin_alike_once_they_are_linked(path):
    address = "https://github.com/owner/name"
    sources = [cell.source for cell in beginning(linked(path, address)) if cell.cell_type == "code"]
    assert f'REPOSITORY = "{address}"' in sources[0]
    assert sources == [cell.source for cell in beginning(linked(NEXT, address)) if cell.cell_type == "code"]


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_only_a_notebooks_first_cell_asks_where_it_lies(path):
    """Hence those that are executed beside the project run in Colab too."""
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    place = re.compile(r"\.\./|\bPath\(|\bcwd\b|\bos\.|COLAB|^[!%]", re.MULTILINE)
    assert place.search(cells[0])
    for source in cells[1:]:
        assert not place.search(source), source
