"""What the functions of the lab have to do: small cases with known answers, each worth some marks.

A check says what is wrong, not how it is written. The four parts together are worth TOTAL marks.
"""

import contextlib
import math
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mtl_utils.settings import MAX_REPLAY_PER_TASK

Function = Callable[..., Any]  # a student's
Parts = dict[str, Function]  # all of a student's functions by name
Case = Callable[[Parts], str]  # returns what is wrong, "" if nothing is

NAMES = {1: "choose", 2: "draw", 3: "step_batches", 4: "distillation"}  # the function of each part
PART_3 = 3  # the one that calls another part
TOTAL = 20  # marks
CASE_SECONDS = 10  # that one case may take
SEEDS = 5  # of a choice whose counts are looked at
CASE = "The case:"  # before the words that describe one


@dataclass(frozen=True)
class Result:
    """The marks of one part."""

    part: int
    marks: int
    most: int
    remarks: tuple[str, ...]  # what is wrong, a sentence each

    def __str__(self) -> str:
        line = f"Part {self.part}, {NAMES[self.part]}: {self.marks} of {self.most} marks."
        return "\n".join([line, *(f"  - {remark}" for remark in self.remarks)])


def check(part: int, parts: Parts) -> Result:
    """The marks of one part; a function that fails or returns nothing gets none, and a sentence.

    Part 3 may call the student's `draw`: where that is wrong, a right one stands in, so that a mistake counts once.
    """
    if part == PART_3 and check(PART_3 - 1, parts).remarks:
        with replaced(parts, "draw", draw):
            return check_cases(part, parts)
    return check_cases(part, parts)


@contextlib.contextmanager
def replaced(parts: Parts, name: str, function: Function) -> Iterator[None]:
    """Another function under a name within the block. The parts are a notebook's own globals, so its cells call it."""
    own = parts.get(name)
    parts[name] = function
    try:
        yield
    finally:
        if own is None:
            del parts[name]
        else:
            parts[name] = own


def draw(stored: list[Any], count: int, generator: torch.Generator) -> list[Any]:
    """A right answer to part 2."""
    order = torch.randperm(len(stored), generator=generator).tolist()
    return [stored[index] for index in order[:count]]


def check_cases(part: int, parts: Parts) -> Result:
    """The marks of one part, with the functions as they are."""
    marks = 0
    remarks = []
    for points, case in CASES[part]:
        remark = run_case(case, parts)
        if remark:
            remarks.append(remark)
        else:
            marks += points
    most = sum(points for points, _ in CASES[part])
    distinct = tuple(first_of_each_kind(remarks))  # one mistake may fail several cases
    return Result(part, marks, most, distinct)


def first_of_each_kind(remarks: list[str]) -> list[str]:
    """The remarks without those that begin as an earlier one does: an exception is named with one case."""
    kinds: dict[str, str] = {}
    for remark in remarks:
        kind = remark.split(CASE)[0]
        kinds.setdefault(kind, remark)
    return list(kinds.values())


def run_case(case: Case, parts: Parts) -> str:
    """What is wrong in one case, a mistake of the student's code included."""
    try:
        with time_limit(CASE_SECONDS):
            return case(parts)
    except UnusableError as error:
        return str(error)
    except TooSlowError:
        return f"It does not end within {CASE_SECONDS} seconds: look for a loop that never stops. {CASE} {case.__doc__}"
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever a student's code raises, SystemExit too
        return f"It stops with {type(error).__name__}: {error}. {CASE} {case.__doc__}"


class UnusableError(Exception):
    """A function of the student is not there, or returns what no check can use."""


class TooSlowError(Exception):
    """A case took longer than it may."""


@contextlib.contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raise TooSlowError in what takes longer; without effect where the system has no such alarm (Windows)."""
    has_alarm = hasattr(signal, "SIGALRM") and threading.current_thread() is threading.main_thread()
    if not has_alarm:
        yield
        return

    def stop(_number: int, _frame: object) -> None:
        raise TooSlowError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def call(parts: Parts, name: str, *arguments: Any) -> Any:
    """Call a student's function. Raises UnusableError where it is not there, or returns None."""
    if name not in parts:
        raise UnusableError(f"There is no function {name} yet: run its cell first.")
    value = parts[name](*arguments)
    if value is None:
        raise UnusableError("It is not written yet: it returns nothing.")
    return value


def random_numbers(seed: int) -> torch.Generator:
    """A generator with a seed."""
    return torch.Generator().manual_seed(seed)


# ---- part 1: choose


def choice(parts: Parts, labels: list[int], count: int, seed: int = 0) -> list[int]:
    """The indices that are chosen."""
    indices = call(parts, "choose", list(labels), count, random_numbers(seed))
    return [int(index) for index in indices]


def counts_are(parts: Parts, sizes: dict[int, int], wanted: dict[int, int]) -> str:
    """Whether as many images of each class are chosen as wanted; sizes: how many there are, by class."""
    labels: list[int] = []
    for label, size in sizes.items():
        labels += [label] * size
    for seed in range(SEEDS):  # right once may be luck
        indices = choice(parts, labels, sum(wanted.values()), seed)
        counts = Counter(labels[index] for index in indices)
        if counts != wanted:
            there = listed(sizes)
            found = listed({label: counts[label] for label in sizes})
            return f"From {there} it chose {found}, where {listed(wanted)} were to be stored."
    return ""


def listed(counts: dict[int, int]) -> str:
    """How many images of each class, in words."""
    return ", ".join(f"{count} of class {label}" for label, count in counts.items())


def classes_are_even(parts: Parts) -> str:
    """30 images of class 0, 5 of class 1 and 5 of class 2: of nine that are stored, three are of each class."""
    wrong = counts_are(parts, {0: 30, 1: 5, 2: 5}, {0: 3, 1: 3, 2: 3})
    wrong = wrong or counts_are(parts, {2: 10, 7: 4}, {2: 3, 7: 3})
    if wrong:
        return wrong
    chosen = len(choice(parts, [0, 1, 2] * 9, 10))
    return "" if chosen == 10 else f"The buffer holds ten images; of three classes with nine each it stored {chosen}."


def rare_classes_are_whole(parts: Parts) -> str:
    """Where a rare class has too few images, the others share what is left evenly."""
    wrong = counts_are(parts, {0: 30, 1: 5, 2: 5}, {0: 10, 1: 5, 2: 5})
    return wrong or counts_are(parts, {0: 30, 1: 30, 2: 2}, {0: 9, 1: 9, 2: 2})


def nothing_twice(parts: Parts) -> str:
    """Five images, and room for nine: all five are stored, each once."""
    chosen = sorted(choice(parts, [0, 1, 0, 1, 1], 9))
    return "" if chosen == [0, 1, 2, 3, 4] else f"Nine of five images are all five, each once; it chose {chosen}."


def chance_decides_within_a_class(parts: Parts) -> str:
    """Forty images of one class, and room for five: the generator decides which, and only it does."""
    labels = [0] * 40
    first, again, other = (choice(parts, labels, 5, seed) for seed in (0, 0, 1))
    if first != again:
        return "The same generator gives two different choices: use no other random numbers."
    # the images count, not their order
    return "" if sorted(first) != sorted(other) else "Within a class it always chooses the same images."


# ---- part 2: draw


def drawn(parts: Parts, stored: list[Any], count: int, generator: torch.Generator) -> list[Any]:
    """The samples that are drawn; `stored` itself is given, so that a change of it shows."""
    return list(call(parts, "draw", stored, count, generator))


def draws_are_different_samples(parts: Parts) -> str:
    """Six of eight samples, fifty times: different ones, and not always the same."""
    distinct = set()
    for seed in range(50):
        draw = drawn(parts, list("abcdefgh"), 6, random_numbers(seed))
        if len(draw) != 6 or len(set(draw)) != 6:
            return f"Six different samples of eight were to be drawn; it drew {draw}."
        distinct.add(frozenset(draw))
    return "" if len(distinct) > 1 else "It always draws the same samples."


def small_buffers_are_drawn_whole(parts: Parts) -> str:
    """Six of four samples are all four, and the buffer stays as it is."""
    stored = list("abcd")
    found = sorted(drawn(parts, stored, 6, random_numbers(0)))
    if found != list("abcd"):
        return f"Where fewer are stored than asked for, all are drawn; of a, b, c and d it drew {found}."
    return "" if stored == list("abcd") else "A draw must not change the buffer: the next step needs it, too."


def every_sample_has_its_turn(parts: Parts) -> str:
    """In 400 draws of 3 of 10 every sample comes about 120 times, and a generator gives the same draw again."""
    counts: Counter[str] = Counter()
    pairs: Counter[str] = Counter()
    stored = list("abcdefghij")
    generator = random_numbers(0)
    for _ in range(400):
        samples = sorted(drawn(parts, stored, 3, generator))
        counts.update(samples)
        pairs.update(one + other for one, other in combinations(samples, 2))
    room = 4 * math.sqrt(400 * 0.3 * 0.7)  # four standard deviations
    if any(abs(counts[name] - 120) >= room for name in stored):
        return "Over many steps the samples are not drawn equally often."
    if max(pairs.values()) > 60:  # 27 are expected
        return "Some samples are nearly always drawn together: draw each one by itself."
    many = list(range(30))
    first = drawn(parts, many, 6, random_numbers(3))
    again = drawn(parts, many, 6, random_numbers(3))
    return "" if first == again else "The same generator gives two different draws: use no other random numbers."


# ---- part 3: the batches of a step


def describe(task: str, samples: Any) -> tuple[str, list[Any]]:
    """Stands for the making of a batch: what it was given."""
    return task, list(samples)


def step_of(parts: Parts, task: str, stored: dict[str, list[Any]], seed: int = 0) -> dict[str, Any]:
    """The batches of one step of a task."""
    batches = call(parts, "step_batches", task, "new", stored, describe, random_numbers(seed))
    if not isinstance(batches, dict):
        raise UnusableError(f"It returns a {type(batches).__name__}; a dict is asked for, of batches by task.")
    return batches


def replayed(batches: dict[str, Any], task: str) -> list[Any]:
    """The stored samples of a task in a step; none where there is no batch of make_batch(task, samples)."""
    batch = batches.get(task)
    if isinstance(batch, tuple) and len(batch) == 2 and batch[0] == task:
        return list(batch[1])
    return []


def the_new_batch_is_there(parts: Parts) -> str:
    """Stage 3: the new task's batch, as it is."""
    found = step_of(parts, "cls", {"seg": [1, 2], "det": [3, 4]}).get("cls")
    return "" if found == "new" else "The new task's own batch is not among the batches of its step."


def every_earlier_task_is_replayed(parts: Parts) -> str:
    """A stage with two stored samples of each of three earlier tasks: both samples of all tasks."""
    stored = {"seg": [1, 2], "det": [3, 4], "depth": [5, 6]}
    batches = step_of(parts, "cls", stored)
    for task, samples in stored.items():
        if task not in batches:
            return f"There is no batch of {task}, an earlier task with two stored samples."
        if sorted(replayed(batches, task)) != samples:
            return f"The batch of {task} is to be make_batch({task!r}, samples) of both its samples, {samples}."
    return ""


def the_limit_is_kept(parts: Parts) -> str:
    """Stage 2 with forty stored samples: at most ten of them, other ones in another step."""
    stored = {"seg": list(range(40))}
    steps = [replayed(step_of(parts, "det", stored, seed), "seg") for seed in range(SEEDS)]
    again = replayed(step_of(parts, "det", stored, 0), "seg")
    if stored != {"seg": list(range(40))}:
        return "A step must not change what is stored: the next step needs it, too."
    for samples in steps:
        if not 0 < len(samples) <= MAX_REPLAY_PER_TASK:
            return f"Of 40 stored images a step may replay 1 to {MAX_REPLAY_PER_TASK}; it replayed {len(samples)}."
        if len(set(samples)) < len(samples):
            return "A step replays different samples; here some come twice."
    if steps[0] != again:
        return "The same generator gives two different steps: use no other random numbers."
    return "" if sorted(steps[0]) != sorted(steps[1]) else "Every step replays the same samples: draw them."


def only_earlier_tasks_are_replayed(parts: Parts) -> str:
    """Stage 1 has nothing to replay; in stage 2 segmentation is replayed, and detection's own samples are not."""
    if set(step_of(parts, "seg", {})) - {"seg"}:
        return "In stage 1 there is nothing to replay: the step is the new batch alone."
    batches = step_of(parts, "det", {"seg": [1], "det": [2]})
    if replayed(batches, "det"):
        return (
            "Samples of det were stored, too, and det is the running task: its batch is the new one, none is replayed."
        )
    return "" if set(batches) <= {"det", "seg"} else "There are batches of tasks that are neither new nor stored."


# ---- part 4: distillation


def maps(seed: int, scale: float = 1.0) -> Tensor:
    """Logits (2, 3, 4, 4) of two images."""
    return scale * torch.randn(2, 3, 4, 4, generator=random_numbers(seed))


def loss_of(parts: Parts, student: Tensor, teacher: Tensor, *more: float) -> float:
    """The student's loss as a number."""
    loss = call(parts, "distillation", student, teacher, *more)
    if isinstance(loss, Tensor) and loss.numel() > 1:
        raise UnusableError(f"It returns {loss.numel()} numbers; one is asked for, the mean over all cells.")
    return float(loss)


def nothing_to_learn_from_a_twin(parts: Parts) -> str:
    """Equal maps have the loss 0, different ones a larger one."""
    loss = loss_of(parts, maps(0), maps(0))
    if abs(loss) > 1e-5:
        return f"A student that equals its teacher has the loss 0; it is {loss:.4f}."
    return "" if loss_of(parts, maps(0), maps(1)) > 0.01 else "A student that differs from its teacher has no loss."


def the_value_by_hand(parts: Parts) -> str:
    """The teacher's logits 2 ln 3 and 0 are 3/4 and 1/4 at T = 2, and 9/10 and 1/10 at T = 1, against halves."""
    teacher = torch.tensor([2 * math.log(3), 0.0]).reshape(1, 2, 1, 1)
    for temperature, share in ((2.0, 0.75), (1.0, 0.9)):
        rest = 1 - share
        divergence = share * math.log(2 * share) + rest * math.log(2 * rest)
        expected = temperature**2 * divergence
        loss = loss_of(parts, torch.zeros(1, 2, 1, 1), teacher.clone(), temperature)
        if abs(loss - expected) > 1e-4:
            logits = "the teacher's logits (2 ln 3, 0) and the student's (0, 0)"
            hint = likely_mistake(share, temperature, loss)
            return f"For {logits} at T = {temperature:g} the loss is {expected:.4f}; it is {loss:.4f}{hint}."
    return ""


def likely_mistake(share: float, temperature: float, loss: float) -> str:
    """The usual mistake that gives this loss, if there is one; the probabilities are share, 1 - share and twice 1/2."""
    rest = 1 - share
    right = share * math.log(2 * share) + rest * math.log(2 * rest)
    exchanged = -(math.log(2 * share) + math.log(2 * rest)) / 2
    mistakes = {
        "the factor T^2 is missing": right,
        "the factor is T, or the classes are averaged and not summed": temperature**2 * right / 2,
        "teacher and student are exchanged": temperature**2 * exchanged,
        "the term p log p is missing": temperature**2 * math.log(2),
        "its sign is wrong": -(temperature**2) * right,
    }
    for mistake, value in mistakes.items():
        if abs(loss - value) < 1e-3:
            return f": {mistake}"
    return ""


def the_mean_over_cells(parts: Parts) -> str:
    """The same cell 210 times has the loss of one."""
    student = maps(1)[:1, :, :1, :1]
    teacher = maps(2)[:1, :, :1, :1]
    one = loss_of(parts, student.clone(), teacher.clone())
    many_students = student.repeat(5, 1, 6, 7)
    many_teachers = teacher.repeat(5, 1, 6, 7)
    many = loss_of(parts, many_students, many_teachers)
    hint = "take the mean over cells, and softmax over the classes, in dimension 1"
    if one <= 0 or abs(one - many) >= 1e-4:
        return f"A cell has the loss {one:.4f}, 210 equal ones have {many:.4f}: {hint}."
    student, teacher = maps(3), maps(4)
    log_p, log_q = (F.log_softmax(logits / 2, dim=1) for logits in (teacher, student))
    expected = 4 * F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(1).mean().item()
    loss = loss_of(parts, student, teacher)
    if abs(loss - expected) < 1e-4:
        return ""
    return f"Two images with twelve different cells each have the mean loss {expected:.4f}; it is {loss:.4f}: {hint}."


def only_the_student_learns(parts: Parts) -> str:
    """A gradient for the student, none for the teacher."""
    student, teacher = maps(1).requires_grad_(), maps(2).requires_grad_()
    loss = call(parts, "distillation", student, teacher)
    if not isinstance(loss, Tensor):
        return "It returns a plain number: return a tensor, else no gradient reaches the student."
    if not loss.requires_grad:
        return "The loss sends no gradient to the student."
    loss.sum().backward()
    if student.grad is None or not student.grad.any():
        return "The loss sends no gradient to the student."
    return "" if teacher.grad is None or not teacher.grad.any() else "The loss sends a gradient to the teacher, too."


def large_logits_are_finite(parts: Parts) -> str:
    """Logits of thousands: a softmax of 0 has no logarithm."""
    loss = loss_of(parts, maps(1, 5000.0), maps(2, 5000.0))
    if not math.isfinite(loss):
        return f"For logits of several thousands the loss is {loss}: log_softmax helps."
    return "" if loss > 0 else f"For logits of several thousands the loss is {loss:.4f}; it is never below 0."


CASES: dict[int, list[tuple[int, Case]]] = {
    1: [
        (2, classes_are_even),
        (2, rare_classes_are_whole),
        (1, nothing_twice),
        (1, chance_decides_within_a_class),
    ],
    2: [(2, draws_are_different_samples), (1, small_buffers_are_drawn_whole), (1, every_sample_has_its_turn)],
    3: [
        (1, the_new_batch_is_there),
        (1, every_earlier_task_is_replayed),
        (1, the_limit_is_kept),
        (1, only_earlier_tasks_are_replayed),
    ],
    4: [
        (1, nothing_to_learn_from_a_twin),
        (2, the_value_by_hand),
        (1, the_mean_over_cells),
        (1, only_the_student_learns),
        (1, large_logits_are_finite),
    ],
}  # the marks of every case, by part
