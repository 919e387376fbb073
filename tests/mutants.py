"""Mutation testing of the six files on which every number rests: python tests/mutants.py [FILE ...] [--count N].

Each mutant is the project with one small fault planted in one file (a comparison, a sign, a constant, a condition). Its
tests run until the first fails; a mutant that no test notices survives, and is printed with its line. Mutants run in
forked processes, since importing torch takes longer than most tests.
"""

import argparse
import ast
import copy
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
TESTS = {  # by file: the tests that must notice its faults, quick ones first
    "losses": ["tests/test_losses.py", "tests/test_training.py"],
    "detection": ["tests/test_detection.py", "tests/test_losses.py", "tests/test_evaluation.py"],
    "evaluation": ["tests/test_evaluation.py", "tests/test_detection.py"],
    "forgetting": ["tests/test_forgetting.py", "tests/experiments/test_results.py"],
    "replay": ["tests/test_replay.py", "tests/remedies", "tests/test_training.py"],
    "training": ["tests/test_training.py", "tests/test_stages.py", "tests/remedies"],
}
TIME_LIMIT = 180  # seconds: a mutant that loops for ever counts as noticed
COSMETIC = ("strict", "leave", "delay", "mininterval", "frozen")  # keywords on which no result rests
COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
ARITHMETIC = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.Pow: ast.Mult,
}  # fmt: skip


def faults(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """The small faults that can be planted in one node: what changes, and the faulty node."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
        faulty = copy.deepcopy(node)
        faulty.ops[0] = COMPARISONS[type(node.ops[0])]()
        yield "comparison", faulty
    if isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        faulty = copy.deepcopy(node)
        faulty.op = ARITHMETIC[type(node.op)]()
        yield "arithmetic", faulty
    if isinstance(node, ast.BoolOp):
        faulty = copy.deepcopy(node)
        faulty.op = ast.And() if isinstance(node.op, ast.Or) else ast.Or()
        yield "and/or", faulty
    if isinstance(node, ast.UnaryOp):  # -x, ~x and not x become x
        yield "sign", copy.deepcopy(node.operand)
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield "constant", ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield "constant", ast.Constant(node.value + 1)
    if isinstance(node, ast.If):
        faulty = copy.deepcopy(node)
        faulty.test = ast.UnaryOp(ast.Not(), node.test)
        yield "condition", faulty


class Plant(ast.NodeTransformer):
    """Replaces the node with a given number, in the order of a walk through the tree."""

    def __init__(self, target: ast.AST, faulty: ast.AST):
        self.target, self.faulty = target, faulty

    def visit(self, node: ast.AST) -> ast.AST:
        """Leave every node but one as it is."""
        if node is self.target:
            return ast.copy_location(self.faulty, node)
        return self.generic_visit(node)


def without_effect(tree: ast.AST) -> set[int]:
    """The ids of all nodes in type hints and cosmetic arguments, where a fault changes no result."""
    hidden: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg in COSMETIC:
            hidden.add(id(node.value))
        hints = [getattr(node, name, None) for name in ("annotation", "returns")]
        for hint in hints:
            if isinstance(hint, ast.AST):
                hidden.update(id(inner) for inner in ast.walk(hint))
    return hidden


def mutants(source: str) -> list[tuple[int, str, str]]:
    """(line, what changes, faulty source) of every mutant of a file."""
    tree = ast.parse(source)
    hidden = without_effect(tree)
    result = []
    for node in list(ast.walk(tree)):
        if id(node) in hidden:
            continue
        for kind, faulty in faults(node):
            original = ast.unparse(node).splitlines()[0]
            line = node.lineno
            twin = ast.parse(source)
            place = list(ast.walk(tree)).index(node)
            target = list(ast.walk(twin))[place]
            planted = ast.fix_missing_locations(Plant(target, faulty).visit(twin))
            changed = ast.unparse(faulty).splitlines()[0]
            result.append((line, f"{kind}: {original}  ->  {changed}", ast.unparse(planted)))
    return result


def noticed(folder: Path, tests: list[str]) -> bool:
    """Whether the tests fail in a copy of the project: run in a forked process."""
    child = os.fork()
    if child == 0:
        os.setsid()  # so that the whole group can be ended
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        os.chdir(folder)
        import pytest

        os._exit(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests])))
    deadline = time.monotonic() + TIME_LIMIT
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status != 0
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def main() -> int:
    """Run the mutants; the exit status is the number of survivors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", default=list(TESTS), help=f"some of {', '.join(TESTS)}")
    parser.add_argument("--count", type=int, default=60, help="mutants a file, chosen at random (0: all)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    sys.dont_write_bytecode = True  # a stale .pyc would hide a mutant
    sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() not in (PROJECT, PROJECT / "tests")]
    import numpy  # noqa: F401  # imported here once, not in every fork
    import PIL.Image  # noqa: F401
    import pycocotools.cocoeval  # noqa: F401
    import pytest  # noqa: F401
    import torch
    import torchvision.transforms.v2  # noqa: F401

    torch.set_num_threads(1)
    survivors = 0
    total = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "project"
        left_out = shutil.ignore_patterns(".git", ".venv*", "runs", "synthetic", "__pycache__", ".*_cache")
        shutil.copytree(PROJECT, folder, ignore=left_out)
        for name in options.files:
            path = folder / "mtl_utils" / f"{name}.py"
            source = path.read_text(encoding="utf-8")
            if noticed(folder, TESTS[name]):
                sys.exit(f"the tests of {name}.py fail without any fault: mend that first")
            every = mutants(source)
            chosen = every
            if options.count and len(every) > options.count:
                chosen = random.Random(options.seed).sample(every, options.count)
            alive = 0
            for line, what, faulty in sorted(chosen):
                path.write_text(faulty, encoding="utf-8")
                if not noticed(folder, TESTS[name]):
                    alive += 1
                    print(f"survives: {name}.py:{line}  {what}", flush=True)
            path.write_text(source, encoding="utf-8")
            print(f"{name}: {len(chosen)} of {len(every)} mutants, {alive} survive", flush=True)
            survivors += alive
            total += len(chosen)
    print(f"{survivors} of {total} survive ({survivors / total:.1%})")
    return survivors


if __name__ == "__main__":
    sys.exit(main())
