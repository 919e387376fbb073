"""The commands as a user types them: what they print, their exit status, and one sentence for every mistake."""

import argparse
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers import SETTINGS, change_json

from mtl_utils import files, weights
from mtl_utils.cli import evaluate, research
from mtl_utils.cli import main as cli_main
from mtl_utils.cli import run as cli_run
from mtl_utils.cli.guard import guarded
from mtl_utils.experiments import benchmark, runner
from mtl_utils.files import PROJECT, UserError
from mtl_utils.model import UnifiedModel
from mtl_utils.prepare.root import Root
from mtl_utils.publish import links, readme
from mtl_utils.publish import log as run_log
from mtl_utils.publish import run as publish_run
from mtl_utils.run import DEVICES, pick_device
from mtl_utils.settings import PROFILES
from mtl_utils.stages import run_stage
from mtl_utils.tasks import FOLDERS, TASKS, stage_name

TINY = replace(
    PROFILES["smoke"],
    train_size=dict(seg=64, det=64, cls=32),
    epochs=dict(seg=1, det=1, cls=1),
    batch_size=dict(seg=2, det=2, cls=2),
    buffer_size=4,
)


@pytest.fixture
def trained(trained_run):
    """The folder of a run with all stages done."""
    return trained_run.folder


def marks(weights: Path, root: Path, *more: str) -> int:
    return evaluate.evaluate_command(["--weights", str(weights), "--data_root", str(root), *more])


# what belongs to figures, tables and notebooks: neither marking nor training waits for it
PLOTTING = {"matplotlib", "seaborn", "pandas", "nbformat", "nbconvert", "IPython", "ipywidgets"}


def in_a_fresh_process(*command, **environment) -> tuple[str, set[str]]:
    """What a command of Python prints, and the packages that it imports."""
    variables = os.environ | environment | {"PYTHONPROFILEIMPORTTIME": "1"}  # names every import on stderr
    words = [sys.executable, *map(str, command)]
    done = subprocess.run(words, cwd=PROJECT, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    packages = set()
    for line in done.stderr.splitlines():
        if line.startswith("import time:"):  # own time | with what it imports | name
            packages.add(line.split("|")[2].strip().split(".")[0])
    assert "torch" in packages
    return done.stdout, packages


def test_marking_command_verbatim(trained, tiny_root):
    weights_file = trained / "stage3_classification.pt"
    words = ["eval.py", "--weights", weights_file, "--data_root", tiny_root, "--tasks", "all"]
    printed, packages = in_a_fresh_process(*words)
    assert [line.split(":")[0] for line in printed.splitlines()] == ["mAP", "mAP@50", "mIoU", "Top-1"]
    assert all("(floor " in line for line in printed.splitlines())
    assert not packages & PLOTTING


@pytest.mark.slow
def test_training_imports_no_plotting(trained, tiny_root):
    """The command on a run that is finished: all that it does but the steps themselves."""
    lines = "import json, sys; from mtl_utils.settings import PROFILES, Settings; "
    lines += "PROFILES['smoke'] = Settings(**json.loads(sys.argv.pop(1))); "
    lines += "from mtl_utils.cli.main import main; sys.exit(main())"
    words = ["train", "--resume", "--profile", "smoke", "--name", trained.name, "--data-root", tiny_root]
    chosen = {"MTL_RUNS": str(trained.parent), "MTL_IMAGENET_WEIGHTS": "nothing"}
    printed, packages = in_a_fresh_process("-c", lines, json.dumps(SETTINGS.as_dict()), *words, **chosen)
    assert printed.count("baseline=") == 3
    assert not packages & PLOTTING


def test_marks_are_the_values_of_the_run(trained, tiny_root, tmp_path):
    assert marks(trained / "stage3_classification.pt", tiny_root, "--json", str(tmp_path / "marks.json")) == 0
    found = json.loads((tmp_path / "marks.json").read_text())["tasks"]
    expected = json.loads((trained / "metrics.json").read_text())["stages"]["cls"]["metrics"]
    breakdown = found["det"].pop("breakdown")
    assert found == expected
    assert len(found["seg"]["per_class"]) == 21
    assert breakdown["mAP@50"] == pytest.approx(found["det"]["mAP@50"])


def test_marking_costs_one_forward_an_image(trained, tiny_root, tmp_path):
    assert marks(trained / "stage3_classification.pt", tiny_root, "--json", str(tmp_path / "marks.json")) == 0
    found = json.loads((tmp_path / "marks.json").read_text())["tasks"]
    assert {task: values["forwards"] for task, values in found.items()} == {"seg": 1, "det": 1, "cls": 1}


@pytest.mark.parametrize(("tasks", "names"), [("seg", ["mIoU"]), ("cls,det", ["mAP", "mAP@50", "Top-1"])])
def test_any_subset_of_tasks(trained, tiny_root, capsys, tasks, names):
    assert marks(trained / "stage3_classification.pt", tiny_root, "--tasks", tasks) == 0
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == names


def test_train_split(trained, tiny_root, capsys):
    assert marks(trained / "stage3_classification.pt", tiny_root, "--split", "train", "--tasks", "seg") == 0
    assert "6 images" in capsys.readouterr().out


def test_root_with_only_some_of_the_sets(trained, tiny_root, tmp_path, capsys):
    shutil.copytree(tiny_root / "mini_voc_seg", tmp_path / "mini_voc_seg")
    assert marks(trained / "stage3_classification.pt", tmp_path) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("mIoU")
    said = [line for line in printed.err.splitlines() if "not evaluated" in line]
    assert said == [
        f"det: {tmp_path} holds no mini_coco_det: not evaluated",
        f"cls: {tmp_path} holds no imagenette_160: not evaluated",
    ]
    assert marks(trained / "stage3_classification.pt", tmp_path, "--tasks", "seg,det") == 1


def mistakes(trained, tiny_root, tmp_path):
    other = tmp_path / "other.pt"
    torch.save({"format": 99}, other)
    text = tmp_path / "text.pt"
    text.write_text("no weights")
    good = trained / "stage3_classification.pt"
    return [
        (tmp_path / "missing.pt", tiny_root, "all", "missing.pt does not exist"),
        (other, tiny_root, "all", "other.pt has checkpoint format 99"),
        (text, tiny_root, "all", "text.pt is not a checkpoint"),
        (trained / "stage1_segmentation.state.pt", tiny_root, "all", "holds no model"),
        (good, tmp_path / "nowhere", "all", "holds none of"),
        (good, tiny_root, "seg,poses", "--tasks names poses"),
    ]


def test_every_mistake_is_one_sentence(trained, tiny_root, tmp_path, capsys):
    for path, root, tasks, text in mistakes(trained, tiny_root, tmp_path):
        assert marks(path, root, "--tasks", tasks) == 1
        said = capsys.readouterr().err
        assert text in said and len(said.strip().splitlines()) == 1 and "Traceback" not in said


def test_weights_for_other_classes(trained, tiny_root, tmp_path, capsys):
    root = tmp_path / "root"
    shutil.copytree(tiny_root, root)
    file = root / "mini_coco_det" / "annotations" / "mini_instances_val2017.json"
    coco = json.loads(file.read_text())
    coco["categories"][0]["name"] = "unicorn"
    file.write_text(json.dumps(coco))
    assert marks(trained / "stage3_classification.pt", root, "--tasks", "det") == 1
    assert "was trained for" in capsys.readouterr().err


@pytest.fixture
def tiny_profile(monkeypatch, tmp_path):
    monkeypatch.setitem(PROFILES, "smoke", TINY)
    monkeypatch.setattr(files, "PROJECT", tmp_path)
    monkeypatch.delenv("MTL_RUNS", raising=False)
    monkeypatch.setenv(weights.VARIABLE, weights.NOTHING)


@pytest.mark.slow
def test_train_then_resume(tiny_profile, tiny_root, capsys, monkeypatch):
    command = ["train", "--profile", "smoke", "--name", "mine", "--data-root", str(tiny_root)]
    assert cli_main.main(command) == 0
    assert capsys.readouterr().out.count("baseline=") == 3
    assert cli_main.main(command) == 1
    assert "already holds a run" in capsys.readouterr().err
    monkeypatch.setattr(cli_run, "run_stage", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert cli_main.main([*command, "--resume"]) == 130
    assert "with --resume" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_a_root_with_one_set_is_checked_trained_and_marked(task, tiny_profile, tiny_root, tmp_path, capsys):
    """The other sets' classes are those of the mini sets, so that the network is the same."""
    root = tmp_path / "one"
    shutil.copytree(tiny_root / FOLDERS[task], root / FOLDERS[task])
    for words, missing in (([], 2), (["--tasks", task], 0)):
        cli_main.main(["data", "check", str(root), *words])
        assert capsys.readouterr().out.count("set is missing") == missing
    command = ["train", "--profile", "smoke", "--name", "one", "--data-root", str(root)]
    assert cli_main.main([*command, "--tasks", task]) == 0
    trained = tmp_path / "runs" / "one" / f"{stage_name(task)}.pt"
    assert marks(trained, root) == 0
    assert trained.exists() and len(list(trained.parent.glob("*.state.pt"))) == 1
    capsys.readouterr()
    assert cli_main.main(["train", "--profile", "smoke", "--name", "all", "--data-root", str(root)]) == 1
    assert "missing or unreadable" in capsys.readouterr().err


def stop_after_a_stage(monkeypatch):
    """Let `train` be stopped when its first stage is done: metrics.json is there from then on."""

    def first_stage(*arguments):
        run_stage(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(cli_run, "run_stage", first_stage)


def test_train_without_replay_says_so_in_its_settings(tiny_profile, tiny_root, tmp_path, monkeypatch):
    stop_after_a_stage(monkeypatch)
    command = ["train", "--profile", "smoke", "--name", "x", "--no-replay", "--data-root", str(tiny_root)]
    assert cli_main.main(command) == 130
    assert json.loads((tmp_path / "runs" / "x" / "metrics.json").read_text())["settings"]["replay_per_task"] == 0


def test_a_named_run_lies_in_the_folder_of_runs(tiny_root, tmp_path, monkeypatch):
    monkeypatch.setenv("MTL_RUNS", str(tmp_path / "elsewhere"))
    words = ["train", "--profile", "smoke", "--name", "mine", "--data-root", str(tiny_root)]
    assert cli_run.open_run(cli_main.make_parser().parse_args(words)).folder == tmp_path / "elsewhere" / "mine"


@pytest.mark.parametrize("kind", ["real", "synthetic"])
def test_a_study_lies_in_the_folder_of_runs(kind, tiny_root, tmp_path, monkeypatch):
    """Its results too, where they rest on rendered pictures."""
    asked = []
    monkeypatch.setenv("MTL_RUNS", str(tmp_path / "elsewhere"))
    monkeypatch.setattr(files, "STUDY_RESULTS", tmp_path / "figures")
    monkeypatch.setattr(runner, "run_study", lambda *arguments: asked.append(arguments[-3:]))
    chosen_by = "synthetic" if kind == "synthetic" else "--data-root"
    monkeypatch.setattr(research, "find_root", lambda given: Root(tiny_root, chosen_by))
    words = ["study", "--profile", "smoke", "--data-root", str(tiny_root), "--what", "seeds", "--shard", "2/3"]
    assert cli_main.main(words) == 0
    folder = tmp_path / "elsewhere" / f"study-smoke-{kind}"
    results = tmp_path / "figures" / "smoke" if kind == "real" else folder / "results"
    assert asked == [(folder, results, runner.Shard(1, 3))]


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b", "1/0"])
def test_a_share_that_cannot_be_is_a_wrong_call(shard, capsys):
    with pytest.raises(SystemExit) as stop:
        cli_main.main(["study", "--what", "seeds", "--shard", shard])
    assert stop.value.code == 2 and "is no share such as 2/8" in capsys.readouterr().err


def test_wrong_data_root_is_one_sentence(tmp_path, capsys):
    assert cli_main.main(["train", "--data-root", str(tmp_path / "nowhere")]) == 1
    assert capsys.readouterr().err.startswith("error: ") and len(capsys.readouterr().err.splitlines()) <= 1


def test_a_device_that_is_not_there_is_refused(tiny_root, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for value in ("cuda", "tpu"):
        monkeypatch.setenv("MTL_DEVICE", value)
        assert cli_main.main(["train", "--data-root", str(tiny_root)]) == 1
        expected = f"error: There is no device {value!r} here: --device or MTL_DEVICE is one of cpu.\n"
        assert capsys.readouterr().err == expected


def test_the_device_is_the_gpu_unless_another_is_chosen(monkeypatch):
    monkeypatch.setenv("MTL_DEVICE", "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device() == "cuda"
    for value in DEVICES:
        options = argparse.Namespace(device=value)
        assert cli_run.chosen_device(options) == value == os.environ["MTL_DEVICE"]
    monkeypatch.setenv("MTL_DEVICE", "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device() == "cpu", "a Mac's GPU has to be asked for"


def test_a_full_gpu_is_one_sentence(capsys):
    def work():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nA second line")

    assert guarded(work) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: the GPU has not enough memory") and len(error.splitlines()) == 1


def test_data_check_says_whether_a_root_is_sound(tiny_root, tmp_path, capsys):
    root = tmp_path / "root"
    shutil.copytree(tiny_root, root)
    next((root / "mini_voc_seg" / "val").glob("*.jpg")).write_bytes(b"torn")
    assert cli_main.main(["data", "check", str(root)]) == 1
    assert ".jpg" in capsys.readouterr().out


def test_fold_makes_a_root_of_the_training_set(tiny_root, tmp_path, capsys):
    assert cli_main.main(["data", "fold", str(tiny_root), str(tmp_path / "fold"), "--fold", "2"]) == 0
    assert capsys.readouterr().out == f"fold 2 of {tiny_root} is in {tmp_path / 'fold'}\n"
    assert len(list((tmp_path / "fold" / "mini_voc_seg" / "val").glob("*.jpg"))) == 1
    assert cli_main.main(["data", "fold", str(tiny_root), str(tmp_path / "fold")]) == 1


@pytest.mark.slow
def test_bench_names_a_ratio_for_every_stage(tiny_profile, tiny_root, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "throughput", partial(benchmark.throughput, steps=1))
    times = benchmark.Timings(ours=200.4, ours_bfloat16=100, reference=400, reference_bfloat16=300)
    timed = []
    monkeypatch.setattr(benchmark, "beside_efficientnet_b0", lambda model: timed.append(model) or times)
    monkeypatch.setattr(files, "COMMITTED_WEIGHTS", Path("nowhere"))
    assert cli_main.main(["bench", "--profile", "smoke", "--data-root", str(tiny_root)]) == 0
    assert [isinstance(model, UnifiedModel) for model in timed] == [True]
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:4] == [
        "our prediction, all answers read: 200 in float32, 100 in bfloat16",
        "EfficientNet-B0's features alone: 400 in float32, 300 in bfloat16",
        "ours by EfficientNet-B0 in float32: 0.50, in bfloat16 0.25",
    ]
    lines = lines[5:]
    assert [line.split()[0] for line in lines] == ["segmentation", "detection", "classification"]
    assert all(line.endswith("%") for line in lines)


def test_a_run_starts_from_the_weights_that_the_project_holds(tiny_profile, tiny_root, tmp_path, monkeypatch):
    monkeypatch.delenv(weights.VARIABLE)
    stop_after_a_stage(monkeypatch)
    assert cli_main.main(["train", "--profile", "smoke", "--name", "x", "--data-root", str(tiny_root)]) == 130
    label = json.loads((tmp_path / "runs" / "x" / "metrics.json").read_text())["initial_weights"]
    assert label == weights.find_starting_weights().label and label.startswith("efficientnet_lite0.pt ")


def test_stage_0_is_no_command_any_more(capsys):
    with pytest.raises(SystemExit):
        cli_main.main(["pretrain", "--images", "x"])
    assert "invalid choice: 'pretrain'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [("seeds", [0, 1, 2]), ("memory", [0]), ("seeds --seeds 4", [4]), ("memory --seeds 1 2", [1, 2])],
)
def test_study_takes_several_seeds_where_they_are_the_question(arguments, expected, tiny_root, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(files, "STUDY_RESULTS", tmp_path)
    monkeypatch.setattr(runner, "run_study", lambda what, settings, root, seeds, *_: asked.append((what, seeds)))
    words = ["study", "--profile", "smoke", "--data-root", str(tiny_root), "--what", *arguments.split()]
    assert cli_main.main(words) == 0
    assert asked == [(arguments.split()[0], expected)]


def test_log_writes_a_line(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(files, "RUN_LOG", tmp_path / "runs.csv")
    assert cli_main.main(["log", str(trained), "tiny"]) == 0
    assert run_log.read_log()[0]["note"] == "tiny"
    assert capsys.readouterr().out == f"{tmp_path / 'runs.csv'} has a line about {trained.name}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run"], "stopped; finished epochs are kept: run again to continue"),
        (["restart"], "stopped; finished epochs are kept: continue with the command run"),
        (["train"], "stopped; finished epochs are kept: continue with --resume"),
        (["data", "fetch"], "stopped; what is there is kept: run again to continue"),
        (["data", "check"], "stopped"),
        (["bench"], "stopped"),
    ],
)
def test_ctrl_c_promises_only_what_the_command_keeps(words, message, monkeypatch, capsys):
    def interrupted(_):
        raise KeyboardInterrupt

    name = f"{words[-1]}_command"
    monkeypatch.setattr(cli_main, name, interrupted)
    assert cli_main.main(words) == 130
    assert capsys.readouterr().err.strip() == message


def test_marking_that_is_stopped_promises_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluate, "mark", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    assert marks(tmp_path / "x.pt", tmp_path) == 130
    assert capsys.readouterr().err.strip() == "stopped"


def every_parser(parser):
    """A parser and all parsers of commands below it."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from every_parser(below)


def test_every_option_has_a_help_text():
    parsers = [*every_parser(cli_main.make_parser()), evaluate.make_parser()]
    assert len(parsers) == 20
    for parser in parsers:
        parser.format_help()
        options = [action for action in parser._actions if not isinstance(action, argparse._SubParsersAction)]
        silent = {action.dest for action in options if not action.help}
        assert silent <= {"repository"}, parser.prog  # OWNER/NAME explains itself


def test_links_and_publish_name_what_they_have_written(tmp_path, monkeypatch, capsys):
    done = []
    monkeypatch.setattr(links, "set_address", done.append)
    monkeypatch.setattr(publish_run, "take_over", done.append)
    monkeypatch.setattr(readme, "remake_readmes", lambda: done.append("pages"))
    assert cli_main.main(["links", "me/mine"]) == 0
    assert capsys.readouterr().out == "the notebooks and README.md, README.zh-TW.md name https://github.com/me/mine\n"
    assert cli_main.main(["publish"]) == 0
    pages = "tables remade in README.md, README.zh-TW.md, figures/study/README.md, REPORT.md\n"
    assert capsys.readouterr().out == pages
    assert cli_main.main(["publish", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"metrics, weights, notebooks and figures are those of {tmp_path}\n{pages}"
    assert done == ["me/mine", "pages", tmp_path, "pages"]


def test_a_console_without_unicode_is_no_obstacle():
    lines = "import sys; from mtl_utils.cli.guard import guarded; sys.exit(guarded(lambda: print('✅ PASS')))"
    plain = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", lines], cwd=PROJECT, env=plain, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "? PASS\n"), done.stderr


def test_restart_sets_aside_what_was_there_and_loses_nothing(tiny_root, tmp_path, monkeypatch, capsys):
    began = []
    monkeypatch.setattr(cli_run, "run_command", lambda options: began.append(cli_run.open_run(options).folder))
    monkeypatch.setenv("MTL_RUN", str(tmp_path / "mine"))
    monkeypatch.setenv("MTL_RUNS", str(tmp_path))
    for number in range(3):
        assert cli_main.main(["restart", "--profile", "smoke", "--data-root", str(tiny_root)]) == 0
        assert not (tmp_path / "mine").exists(), "a run that begins finds no stage"
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "stage1_segmentation.pt").write_text(str(number))
    kept = {path.name: (path / "stage1_segmentation.pt").read_text() for path in tmp_path.iterdir()}
    assert kept == {"mine": "2", "mine-1": "0", "mine-2": "1"}
    assert began == [tmp_path / "mine"] * 3 and "The previous run was moved to mine-2/" in capsys.readouterr().out


def test_restart_moves_nothing_outside_the_folder_of_runs(tiny_root, tmp_path, monkeypatch, capsys):
    """Whoever has set MTL_RUN to a folder of their own finds it untouched."""
    own = tmp_path / "own"
    own.mkdir()
    (own / "thesis.txt").write_text("two years of work")
    monkeypatch.setenv("MTL_RUN", str(own))
    monkeypatch.setenv("MTL_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(cli_run, "run_command", lambda _: pytest.fail("ran"))
    assert cli_main.main(["restart", "--profile", "smoke", "--data-root", str(tiny_root)]) == 1
    assert "move it yourself, or unset MTL_RUN" in capsys.readouterr().err
    assert (own / "thesis.txt").exists()


@pytest.mark.parametrize("name", ["..", ".", "../x", "/tmp/x", ".git", "a/b", "a\\b", " x", "a\n"])
def test_a_run_has_a_plain_name(name, tiny_root, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MTL_RUNS", str(tmp_path / "runs"))
    assert cli_main.main(["train", "--profile", "smoke", "--data-root", str(tiny_root), f"--name={name}"]) == 1
    assert "is no name of a folder" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists() and not (tmp_path / "x").exists()


@pytest.mark.parametrize("debug", [False, True])
def test_the_traceback_is_shown_on_demand(debug, tmp_path, capsys):
    words = ["--debug"] if debug else []
    assert cli_main.main([*words, "log", str(tmp_path / "none"), "a note"]) == 1
    assert evaluate.evaluate_command([*words, "--weights", "none.pt", "--data_root", str(tmp_path)]) == 1
    errors = capsys.readouterr().err
    assert errors.count("Traceback") >= 2 if debug else "Traceback" not in errors
    assert errors.count("\nerror: ") + errors.startswith("error: ") == 2


# ---------------------------------------------------------------- arguments as shells and people give them


@pytest.mark.parametrize("value", ["", "  "])
def test_an_empty_root_is_no_other_root(trained, value, capsys):
    """As `--data_root "$UNSET"` gives it: the default root would be marked in its place."""
    assert marks(trained / "stage3_classification.pt", value) == 1
    assert capsys.readouterr().err.startswith("error: --data-root is empty")


@pytest.mark.parametrize(
    "words",
    [["--split", ""], ["--split", ".."], ["--split", "a/b"], ["--json", ""], ["--json", "."]],
    ids=lambda words: " ".join(words),
)
def test_what_names_no_split_or_file_is_a_wrong_call(trained, tiny_root, words, capsys):
    with pytest.raises(SystemExit) as stop:
        marks(trained / "stage3_classification.pt", tiny_root, *words)
    assert stop.value.code == 2 and "is no name of a" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_a_wrong_call_before_minutes_are_spent(trained, tiny_root, tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as stop:
        marks(trained / "stage3_classification.pt", tiny_root, "--json", str(tmp_path / "file" / "x" / "marks.json"))
    assert stop.value.code == 2 and f"no file can be written to {tmp_path / 'file'}" in capsys.readouterr().err


@pytest.mark.parametrize("tasks", ["", "seg,"])
def test_an_empty_name_of_a_task_is_said(trained, tiny_root, tasks, capsys):
    assert marks(trained / "stage3_classification.pt", tiny_root, "--tasks", tasks) == 1
    assert "has an empty name: choose all, or some of seg,det,cls." in capsys.readouterr().err


def test_boxes_that_nothing_gives_a_size_for_are_marked_with_a_warning(trained, own_root, capsys):
    change_json(own_root, lambda contents: [image.pop("height") for image in contents["images"]], "val")
    assert marks(trained / "stage3_classification.pt", own_root, "--tasks", "det") == 0
    assert "gives no size of" in capsys.readouterr().err


@pytest.mark.parametrize("seed", ["-1", str(2**64), 25 * "9", "x"])
def test_a_seed_that_torch_cannot_take_is_a_wrong_call(seed, capsys):
    with pytest.raises(SystemExit) as stop:
        cli_main.main(["train", "--seed", seed])
    assert stop.value.code == 2


@pytest.mark.parametrize("root", [300 * "x", "~nosuchuser/data"])
def test_a_path_that_cannot_be_ends_in_a_sentence(trained, root, capsys):
    assert marks(trained / "stage3_classification.pt", root) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and errors.count("\n") == 1 and root in errors


def test_a_sentence_is_one_line_whatever_a_file_is_called(capsys):
    def fail():
        raise UserError("a\nb\x1b[31m.jpg is missing: name another.")

    assert guarded(fail) == 1
    assert capsys.readouterr().err == "error: a?b?[31m.jpg is missing: name another.\n"
