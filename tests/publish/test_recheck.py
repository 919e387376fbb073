"""What is published is computed again from what the models predicted for each image; the first difference is named."""

import json
import shutil

import pytest

from mtl_utils import files
from mtl_utils.cli.main import main
from mtl_utils.files import UserError
from mtl_utils.publish import readme, recheck


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A copy of the committed studies, to be spoilt."""
    folder = tmp_path / "study"
    shutil.copytree(files.STUDY_RESULTS, folder)
    monkeypatch.setattr(files, "STUDY_RESULTS", folder)
    return folder


def change(path, edit):
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def test_all_that_is_published_follows_from_the_images(capsys):
    main(["study", "--check"])
    assert "all as stored" in capsys.readouterr().out


def test_every_run_has_the_predictions_for_its_images():
    paths = recheck.result_paths()
    assert paths
    assert all((path.parent / "images" / path.name).exists() for path in paths)


@pytest.mark.parametrize(
    ("name", "edit", "sentence"),
    [
        ("replay_seed0", lambda run: run["metrics"]["cls"]["seg"].update(mIoU=0.6), "mIoU is 0.600000, but its images"),
        ("single-det_seed0", lambda run: run["metrics"]["det"]["det"].update({"mAP@50": 0.3}), "mAP@50 is 0.300000"),
        ("single-cls_seed1", lambda run: run["bootstrap_draws"]["cls"]["cls"].__setitem__(6, 1), "resample 7 of Top-1"),
        ("no-replay_seed0", lambda run: run["bootstrap_draws"]["cls"].pop("det"), "other stages or tasks"),
    ],
)
def test_a_run_that_was_changed_is_named(results, name, edit, sentence):
    path = results / "full" / f"{name}.json"
    change(path, edit)
    with pytest.raises(UserError, match=sentence) as error:
        recheck.check_run(path)
    assert path.name in str(error.value)


def test_changed_predictions_are_found(results):
    path = results / "full" / "replay_seed0.json"
    change(recheck.outcomes_path(path), lambda stages: stages["cls"]["det"][3]["detections"].reverse())
    with pytest.raises(UserError, match=r"mAP@50 is .* but its images give"):
        recheck.check_run(path)


def test_a_run_without_predictions_is_named(results):
    path = results / "full" / "replay_seed0.json"
    recheck.outcomes_path(path).unlink()
    with pytest.raises(UserError, match="replay_seed0"):
        recheck.check_run(path)


def test_a_table_with_another_number_is_named_with_its_line(monkeypatch):
    page = readme.read("README.md")
    number = next(n for n, line in enumerate(page.splitlines(), start=1) if line.startswith("| mIoU | 0."))
    lines = page.splitlines()
    lines[number - 1] = lines[number - 1].replace("0.", "0.9", 1)
    monkeypatch.setattr(readme, "read", lambda _: "\n".join(lines))
    with pytest.raises(UserError, match=f"README.md, line {number} "):
        recheck.check_page("README.md")
