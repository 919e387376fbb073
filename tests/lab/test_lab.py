"""The lab: right answers get all marks, wrong ones fewer, hostile ones a sentence; one source makes both notebooks."""

import json
import random
import re

import nbformat
import pytest
import torch
from helpers import SETTINGS

from mtl_utils import weights
from mtl_utils.cli import main as cli_main
from mtl_utils.files import UserError
from mtl_utils.lab import build, checks, cure, grade, sandbox
from mtl_utils.lab.checks import CASES, NAMES, TOTAL, check
from mtl_utils.prepare.root import Root
from mtl_utils.run import Run
from mtl_utils.stages import run_stage

# of every part a typical mistake, in place of the solution
WRONG = {
    1: (
        "def choose(labels, count, generator):\n"
        "    return torch.randperm(len(labels), generator=generator).tolist()[:count]"
    ),
    2: (
        "def draw(stored, count, generator):\n"
        "    picks = torch.randint(len(stored), (count,), generator=generator)\n"
        "    return [stored[pick] for pick in picks.tolist()]"
    ),
    3: (
        "def step_batches(task, new_batch, stored, make_batch, generator):\n"
        "    return {name: make_batch(name, draw(samples, 6, generator)) for name, samples in stored.items()}"
    ),
    4: (
        "def distillation(student, teacher, temperature=2.0):\n"
        "    p, q = (teacher / temperature).softmax(1), (student / temperature).softmax(1)\n"
        "    return (p * (p / q).log()).sum()"
    ),
}
SOURCES = grade.read_parts(build.SOLUTION)


def solution() -> dict:
    """The functions of the solution."""
    namespace = {"torch": torch, "F": torch.nn.functional}
    for source in SOURCES.values():
        exec(source, namespace)
    return namespace


def test_there_are_twenty_marks():
    assert sum(points for cases in CASES.values() for points, _ in cases) == TOTAL


@pytest.mark.parametrize("part", NAMES)
def test_the_solution_has_all_marks(part):
    result = check(part, solution())
    assert result.remarks == () and result.marks == result.most


@pytest.mark.parametrize("part", NAMES)
def test_a_typical_mistake_has_fewer_marks_and_a_sentence(part):
    result = sandbox.run_parts(part, SOURCES | {part: WRONG[part]})
    assert result.marks < result.most and result.remarks


def pools_of(labels, generator):
    """The images of each class, in random order."""
    pools = {}
    for index in torch.randperm(len(labels), generator=generator).tolist():
        pools.setdefault(labels[index], []).append(index)
    return pools


def overshoot(labels, count, generator):
    """Whole rounds: a buffer of ten holds twelve."""
    pools, chosen = pools_of(labels, generator), []
    while len(chosen) < min(count, len(labels)):
        chosen += [pool.pop() for pool in pools.values() if pool]
    return chosen


def quota(labels, count, generator):
    """A quota for each class, and the rest as they come."""
    pools = pools_of(labels, generator)
    chosen = [index for pool in pools.values() for index in pool[: count // len(pools)]]
    rest = [index for index in range(len(labels)) if index not in chosen]
    return (chosen + rest)[: min(count, len(labels))]


def always_the_first(labels, count, generator):
    """The first images of each class, in random order."""
    pools = {}
    for index, label in enumerate(labels):
        pools.setdefault(label, []).insert(0, index)
    chosen = []
    while len(chosen) < min(count, len(labels)):
        for pool in pools.values():
            if pool and len(chosen) < count:
                chosen.append(pool.pop())
    order = torch.randperm(len(chosen), generator=generator).tolist()
    return [chosen[place] for place in order]


def emptying(stored, count, generator):
    """Takes the samples out of the buffer."""
    picked = [int(torch.randint(1 << 30, (1,), generator=generator)) for _ in range(min(count, len(stored)))]
    return [stored.pop(pick % len(stored)) for pick in picked]


def first_six(task, new_batch, stored, make_batch, generator):
    """Replays the first six samples in every step."""
    old = {name: make_batch(name, samples[:6]) for name, samples in stored.items() if name != task}
    return {task: new_batch} | old


def fixed_temperature(student, teacher, temperature=2.0):
    """T = 2, whatever it is asked for."""
    target, predicted = ((maps / 2).log_softmax(1) for maps in (teacher.detach(), student))
    return 4 * (target.exp() * (target - predicted)).sum(1).mean()


def lucky_quota(labels, count, generator):
    """A quota for each class, and the rest at random from anything that is left: even by luck."""
    pools = pools_of(labels, generator)
    chosen = [index for pool in pools.values() for index in pool[: count // len(pools)]]
    rest = [index for pool in pools.values() for index in pool[count // len(pools) :]]
    order = torch.randperm(len(rest), generator=generator).tolist()
    return (chosen + [rest[place] for place in order])[: min(count, len(labels))]


def window(stored, count, generator):
    """Neighbours in the list, from a random place on."""
    first = int(torch.randint(max(1, len(stored)), (1,), generator=generator))
    return (stored[first:] + stored[:first])[:count]


def step_by(pick):
    """A step that replays what `pick` chooses of each earlier task's samples."""

    def step(task, new_batch, stored, make_batch, generator):
        old = {n: make_batch(n, pick(samples, generator)) for n, samples in stored.items() if n != task}
        return {task: new_batch} | old

    return step


def with_own_samples(task, new_batch, stored, make_batch, generator):
    """Replays whatever is stored, the running task too."""
    return {task: new_batch} | {name: make_batch(name, samples[:6]) for name, samples in stored.items()}


def emptied(samples, generator):
    """Takes six samples out of the buffer."""
    return [
        samples.pop(int(torch.randint(len(samples), (1,), generator=generator))) for _ in range(min(6, len(samples)))
    ]


def some_twice(samples, generator):
    """Draws with replacement."""
    return [samples[i] for i in torch.randint(len(samples), (9,), generator=generator).tolist()]


def divergence(p, q):
    """KL of probabilities (B, C, h, w), summed over the classes."""
    return (p * (p.log() - q.log())).sum(1)


def soft(logits, temperature):
    return (logits / temperature).softmax(1)


def over_cells_too(student, teacher, temperature=2.0):
    """Softmax over classes and cells together."""
    p, q = ((maps.detach() / temperature).flatten(1).softmax(1) for maps in (teacher, student))
    return temperature**2 * (p * (p.log() - q.log())).sum(1).mean() + 0 * student.sum()


def first_image(student, teacher, temperature=2.0):
    return temperature**2 * divergence(soft(teacher[:1].detach(), temperature), soft(student[:1], temperature)).mean()


SUBTLE = [
    (1, lucky_quota, "it chose"),
    (2, window, "drawn together"),
    (3, step_by(emptied), "must not change what is stored"),
    (3, step_by(lambda s, g: s if len(s) < 3 else some_twice(s, g)), "come twice"),
    (3, step_by(lambda samples, _: random.sample(samples, min(6, len(samples)))), "no other random numbers"),
    (3, with_own_samples, "det is the running task"),
    (3, lambda *arguments: list(solution()["step_batches"](*arguments).items()), "It returns a list; a dict"),
    (4, over_cells_too, "softmax over the classes"),
    (4, first_image, "Two images"),
    (4, lambda s, t, temperature=2.0: divergence(soft(t.detach(), temperature), soft(s, temperature)).mean(), "T^2"),
    (4, lambda s, t, temperature=2.0: 4 * divergence(soft(s, 2), soft(t.detach(), 2)).mean(), "are exchanged"),
    (4, lambda s, t, temperature=2.0: 4 * divergence(soft(t.detach(), 2), soft(s, 2)), "one is asked for"),
    (4, lambda s, t, temperature=2.0: solution()["distillation"](s, t, temperature).item(), "a plain number"),
    (1, overshoot, "it stored 12"),
    (1, quota, "it chose"),
    (1, always_the_first, "always chooses the same images"),
    (2, lambda stored, count, generator: stored[:count], "always draws the same"),
    (2, emptying, "must not change the buffer"),
    (2, lambda stored, count, generator: random.sample(stored, min(count, len(stored))), "no other random numbers"),
    (3, first_six, "same samples"),
    (3, lambda task, new_batch, *_: {task: new_batch}, "There is no batch of seg"),
    (4, fixed_temperature, "at T = 1"),
    (4, lambda student, teacher, temperature=2.0: (student * 0).sum(), "no loss"),
]


@pytest.mark.parametrize(("part", "function", "remark"), SUBTLE)
def test_a_subtle_mistake_is_found(part, function, remark):
    result = check(part, solution() | {NAMES[part]: function})
    assert result.marks < result.most and any(remark in line for line in result.remarks), result


def reversed_tuple(stored, count, generator):
    """Another right answer: a tuple, by repeated drawing."""
    left = list(stored)
    return tuple(
        left.pop(int(torch.randint(len(left), (1,), generator=generator))) for _ in range(min(count, len(left)))
    )


def by_kl_div(student, teacher, temperature=2.0):
    """Another right answer: torch's own divergence, one cell a row, changing its own copy in place."""
    target, predicted = (
        maps.movedim(1, -1).reshape(-1, maps.shape[1]) / temperature for maps in (teacher.detach(), student)
    )
    loss = torch.nn.functional.kl_div(predicted.log_softmax(1), target.softmax(1), reduction="batchmean")
    return loss * temperature**2


def test_another_right_answer_has_all_marks():
    assert check(2, solution() | {"draw": reversed_tuple}).remarks == ()
    assert check(4, solution() | {"distillation": by_kl_div}).remarks == ()


def test_a_wrong_draw_does_not_cost_part_3_its_marks():
    for wrong in ("def draw(*_):\n    return None", "raise ValueError"):
        assert sandbox.run_parts(3, SOURCES | {2: wrong}).remarks == ()


def test_the_notebooks_own_check_lets_a_wrong_draw_count_once():
    def repeating(stored, count, generator):
        return stored[:1] * count

    source = "def step_batches(task, new_batch, stored, make_batch, generator):\n"
    source += "    earlier = [name for name in stored if name != task]\n"
    source += "    batches = {name: make_batch(name, draw(stored[name], 6, generator)) for name in earlier}\n"
    source += "    return {task: new_batch} | batches"
    parts = {"draw": repeating}
    exec(source, parts)
    assert check(2, parts).remarks and check(3, parts).remarks == ()
    assert parts["draw"] is repeating, "it is put back"
    del parts["draw"]
    assert check(3, parts).remarks == () and "draw" not in parts


def test_an_exception_is_named_once():
    def choose(labels, count, generator):
        raise NameError("name 'label' is not defined")

    (remark,) = check(1, solution() | {"choose": choose}).remarks
    start = "It stops with NameError: name 'label' is not defined. The case: 30 images of class 0"
    assert remark.startswith(start)


def test_what_is_not_written_has_no_marks():
    for part, name in NAMES.items():
        result = check(part, solution() | {name: lambda *_: None})
        assert (result.marks, result.remarks) == (0, ("It is not written yet: it returns nothing.",))
        assert check(part, {}).remarks == (f"There is no function {name} yet: run its cell first.",)


def test_every_case_can_fail():
    """With functions that return nonsense of the right type no case is passed by accident, but those of finiteness."""
    nonsense = {
        "choose": lambda labels, count, generator: [0] * count,
        "draw": lambda stored, count, generator: stored[:1] * count,
        "step_batches": lambda task, new, stored, make, generator: {task: "old", "seg": make("seg", list(range(40)))},
        "distillation": lambda student, teacher: (student - teacher).sum() + float("nan"),
    }
    for part in NAMES:
        assert check(part, nonsense).marks <= 1


def notebook_of(tmp_path, sources):
    """A notebook with one cell a part."""
    cells = [nbformat.v4.new_code_cell(source) for source in sources.values()]
    path = tmp_path / "handed_in.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


@pytest.mark.slow
def test_the_command_gives_the_solution_full_marks(capsys):
    assert cli_main.main(["grade", str(build.SOLUTION)]) == 0
    assert capsys.readouterr().out.endswith("20 of 20 marks\n")


HOSTILE = {
    "a loop that never ends": ("while True: pass", "does not end within 2 seconds"),
    "too much memory": ("return [torch.zeros(10**9) + 1 for _ in range(9)]", "stops with RuntimeError|Memory"),
    "the end of the process": ("raise SystemExit", "stops with SystemExit"),
    "an import": ("import os", "imports os: only"),
    "a file": ("open('/etc/passwd')", "uses open"),
    "a way around": ("().__class__", "uses __class__"),
    "torch's own way out": ("torch.os._exit(0)", "uses os"),
    "a wrong shape": ("torch.zeros(2) @ torch.zeros(3)", "stops with RuntimeError"),
    "no Python": ("1 +", "stops with SyntaxError"),
}


@pytest.mark.parametrize("body", [body for body in HOSTILE if body != "too much memory"])
def test_hostile_code_ends_in_a_sentence(body, tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "CASE_SECONDS", 2)
    code, sentence = HOSTILE[body]
    source = f"def choose(labels, count, generator):\n    {code}"
    remark = grade.forbidden(source)
    result = grade.no_marks(1, remark) if remark else sandbox.run_parts(1, {1: source})
    assert result.marks == 0 and re.search(sentence, result.remarks[0]), result.remarks


@pytest.mark.slow
@pytest.mark.parametrize("body", ["a loop that never ends", "too much memory", "the end of the process"])
def test_the_process_of_a_part_has_limits(body, tmp_path):
    code, sentence = HOSTILE[body]
    source = f"def choose(labels, count, generator):\n    {code}"
    result = grade.grade_part(1, grade.read_parts(notebook_of(tmp_path, {1: source})))
    assert result.marks == 0 and re.search(sentence.replace(" 2 ", " 10 "), result.remarks[0]), result.remarks


@pytest.mark.slow
def test_a_loop_that_no_alarm_ends_is_ended_by_its_parent(tmp_path, monkeypatch):
    monkeypatch.setattr(grade, "SECONDS", 12)
    source = "while True:\n    try:\n        choose = len\n    except BaseException:\n        pass"
    result = grade.grade_part(1, {1: source})
    assert "does not end within 12 seconds" in result.remarks[0]


def test_what_a_part_may_use():
    for fine in ("input = 3\nprint(input)", "max([1], key={1: 2}.__getitem__)", "from typing import List", "globals()"):
        assert grade.forbidden(fine) == ""


def test_the_cell_that_counts_is_the_last_that_defines_the_function(tmp_path):
    sources = {
        0: "\n# part 1\ndef choose(a):\n    return 1",
        1: "def choose(a):\n    return 2",
        2: "# part 1: a test\nchoose(3)",
    }
    assert grade.read_parts(notebook_of(tmp_path, sources)) == {1: sources[1]}


def test_a_missing_part_and_a_file_that_is_no_notebook(tmp_path):
    assert grade.grade_part(2, {}).remarks == ("The notebook has no cell that defines draw.",)
    (tmp_path / "x.ipynb").write_text("[]")
    with pytest.raises(UserError, match="holds no cells"):
        grade.read_parts(tmp_path / "x.ipynb")
    with pytest.raises(UserError, match=r"absent\.ipynb"):
        grade.read_parts(tmp_path / "absent.ipynb")


@pytest.mark.parametrize(("path", "with_solution"), [(build.STUDENT, False), (build.SOLUTION, True)])
def test_both_notebooks_are_those_of_the_source(path, with_solution):
    made, stored = build.build(with_solution), nbformat.read(path, as_version=4)
    assert [(cell.cell_type, cell.source) for cell in made.cells] == [(c.cell_type, c.source) for c in stored.cells]


def test_the_students_notebook_holds_no_solution():
    text = json.dumps(nbformat.read(build.STUDENT, as_version=4))
    assert "SOLUTION" not in text and "log_softmax(teacher" not in text
    assert text.count("# your code") == len(NAMES)


def test_rarest_classes_by_hand(monkeypatch):
    """Three masks hold 1, two hold 2, one holds 3."""
    monkeypatch.setattr(cure, "image_classes", lambda task, target: target)
    assert cure.rarest_classes([(None, {1, 2, 3}), (None, {1, 2}), (None, {1})]) == [3, 2, 1]


@pytest.mark.slow
def test_the_students_remedy_trains(tiny_root, tmp_path, monkeypatch):
    monkeypatch.setenv(weights.VARIABLE, weights.NOTHING)
    run = Run(SETTINGS, tmp_path, Root(tiny_root, "--data-root"))
    run_stage(run, "seg")
    table = cure.compare(run, solution())
    published = cure.our_table().data
    assert all(name in published for name in [*table.columns, *table.index])
    assert list(table.index) == ["none", "your replay", "your distillation", "both", "the module's replay"]
    assert table["stored images"].tolist() == [0, 4, 0, 4, 4]
    unfinished = solution() | {"draw": lambda *_: None}
    assert cure.compare(run, unfinished).startswith("First make part 2 right: It is not written yet")


def test_the_check_of_a_notebook_prints_its_remarks():
    line = str(checks.Result(2, 1, 4, ("It is wrong.",)))
    assert line == "Part 2, draw: 1 of 4 marks.\n  - It is wrong."
