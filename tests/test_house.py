"""The order of the house: which file may import which, what reads the environment, how dense the code is."""

import ast
import io
import re
import statistics
import subprocess
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from mtl_utils.files import PROJECT

PACKAGE = PROJECT / "mtl_utils"
FOLDERS = (
    "prepare",
    "remedies",
    "export",
    "experiments",
    "plots",
    "publish",
    "lab",
    "cli",
)  # each may import those before it
# the order in which the core is read; a file imports only files before it, but for those ahead
READING_ORDER = (
    "tasks", "settings", "model", "detection", "losses", "layout", "pictures", "coco", "data", "transforms", "replay",
    "training", "evaluation", "forgetting", "weights", "run", "stages",
)  # fmt: skip
AHEAD = {"model": {"detection"}, "losses": {"data"}}  # for the numbers of channels, and for the type of a target
HELPERS = ("files", "checkpoint", "environment", "processes", "progress", "provenance")  # read when needed
DOORS = {"stages": "remedies.build", "run": "prepare.root"}  # the only ways from the core into a folder
FOUNDATION = {
    "tasks",
    "files",
    "layout",
    "pictures",
    "coco",
    "environment",
    "progress",
}  # what prepare may use of the core
WITHOUT_PACKAGES = ("environment", "settings", "tasks", "files")  # imported before Colab has installed any

CORE = sorted(path for path in PACKAGE.glob("*.py") if path.stem != "__init__")
INNER = sorted(path for path in PACKAGE.glob("*/*.py") if path.stem != "__init__")


def module_name(path: Path) -> str:
    """A file's name inside the package: "run", "prepare.root"."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def names(paths: list[Path]) -> list[str]:
    return [module_name(path) for path in paths]


def is_module(name: str) -> bool:
    path = PACKAGE.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").exists()


def imports(tree: ast.AST) -> Iterator[str]:
    """The full names of all modules that a file imports, at its top or inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                is_inner = inner.startswith("mtl_utils.") and is_module(inner.removeprefix("mtl_utils."))
                yield inner if is_inner else node.module


def own_imports(name: str) -> set[str]:
    """The modules of the package that one of them imports, by their names inside it."""
    tree = ast.parse(PACKAGE.joinpath(*name.split(".")).with_suffix(".py").read_text(encoding="utf-8"))
    return {module.removeprefix("mtl_utils.") for module in imports(tree) if module.startswith("mtl_utils.")}


def test_imports_are_found_wherever_they_stand():
    text = "import os\nfrom mtl_utils import files\nfrom mtl_utils.run import Run\ndef f():\n    from x.y import z\n"
    text += "    import mtl_utils.cli.main\n    from mtl_utils.plots import style, no_module\n"
    expected = ["os", "mtl_utils.files", "mtl_utils.run"]
    expected += ["x.y", "mtl_utils.cli.main", "mtl_utils.plots.style", "mtl_utils.plots"]
    assert list(imports(ast.parse(text))) == expected
    assert {"stages", "cli.guard"} <= own_imports("cli.run") | own_imports("cli.main")


def test_every_core_file_has_its_place():
    assert sorted((*READING_ORDER, *HELPERS, "__main__")) == names(CORE)
    assert {path.parent.name for path in INNER} == set(FOLDERS)


@pytest.mark.parametrize("name", [*READING_ORDER, *HELPERS])
def test_the_core_needs_no_folder_but_through_its_doors(name):
    into_folders = {other for other in own_imports(name) if other.split(".")[0] in FOLDERS}
    assert into_folders <= {DOORS.get(name)}


@pytest.mark.parametrize("name", READING_ORDER)
def test_a_core_file_imports_only_what_is_read_before_it(name):
    before = set(READING_ORDER[: READING_ORDER.index(name)])
    assert own_imports(name) <= before | set(HELPERS) | {DOORS.get(name)} | AHEAD.get(name, set())


def test_helpers_import_nothing_but_helpers():
    for name in HELPERS:
        assert own_imports(name) <= set(HELPERS)


def test_nothing_is_imported_in_a_circle():
    """Whoever is imported has been removed, with all that it imports, before whoever imports it."""
    waiting = {name: own_imports(name) for name in names(CORE + INNER)}
    while ready := [name for name, needed in waiting.items() if not needed & waiting.keys()]:
        for name in ready:
            del waiting[name]
    assert waiting == {}


@pytest.mark.parametrize("name", names(INNER))
def test_a_folder_imports_the_core_itself_and_the_folders_before_it(name):
    folder = name.split(".")[0]
    allowed = FOLDERS[: FOLDERS.index(folder) + 1]
    for other in own_imports(name):
        place = other.split(".")[0]
        assert place in allowed or (place not in FOLDERS and place != "__main__"), other


@pytest.mark.parametrize("name", [name for name in names(INNER) if name.startswith("prepare.")])
def test_prepare_stands_on_the_foundation_alone(name):
    assert {other for other in own_imports(name) if not other.startswith("prepare")} <= FOUNDATION


@pytest.mark.parametrize("name", WITHOUT_PACKAGES)
def test_what_colabs_first_cell_imports_needs_no_package(name):
    """In a Python that sees no site-packages."""
    lines = f"import sys; sys.path.insert(0, {str(PROJECT)!r}); import mtl_utils.{name}"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", lines], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def reads_environment(tree: ast.AST) -> list[int]:
    """The lines that read an environment variable; setting one is no reading.

    Allowed are os.environ[...] = value, os.environ.update(...) and os.environ.setdefault(...) as a statement.
    """
    allowed = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            allowed |= {id(target.value) for target in node.targets if isinstance(target, ast.Subscript)}
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            function = node.value.func
            if isinstance(function, ast.Attribute) and function.attr in ("update", "setdefault"):
                allowed.add(id(function.value))
    lines = []
    for node in ast.walk(tree):
        is_environment = isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "environb")
        if is_environment and id(node) not in allowed:
            lines.append(node.lineno)
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            lines += [node.lineno for alias in node.names if alias.name in ("environ", "getenv", "environb")]
    return sorted(lines)


def test_reading_and_setting_variables_are_told_apart():
    setting = "os.environ['A'] = 'b'\nos.environ.update(a)\nos.environ.setdefault('A', 'b')\n"
    reading = "x = os.environ['A']\nif 'A' in os.environ: pass\nos.getenv('A')\nx = os.environ.setdefault('A', 'b')\n"
    assert reads_environment(ast.parse(setting)) == []
    assert reads_environment(ast.parse(setting + reading + "from os import environ")) == [4, 5, 6, 7, 8]


@pytest.mark.parametrize("path", [p for p in CORE + INNER if p.stem != "environment"], ids=module_name)
def test_the_environment_is_read_in_one_file(path):
    assert reads_environment(ast.parse(path.read_text(encoding="utf-8"))) == []


class Density(NamedTuple):
    """How much a reader of a file has to take in at a time."""

    mean: float  # syntax nodes a line of code
    dense: int  # nodes of a line that is denser than nine in ten
    nested: int  # comprehensions inside comprehensions, or over two loops
    comments: float  # a hundred lines of the file


COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def density(text: str) -> Density:
    """Measure a file's text. A node counts for the line that it starts on; docstrings are not code."""
    tree = ast.parse(text)
    documentation = docstring_lines(tree)
    nodes_at_line = Counter()
    nested = 0
    for node in ast.walk(tree):
        if isinstance(node, COMPREHENSIONS):
            nested += len(node.generators) > 1 or contains_comprehension(node)
        line = getattr(node, "lineno", None)
        if line is not None and line not in documentation:
            nodes_at_line[line] += 1
    counts = sorted(nodes_at_line.values()) or [0]
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = sum(token.type == tokenize.COMMENT for token in tokens)
    dense = counts[int(0.9 * (len(counts) - 1))]
    return Density(statistics.mean(counts), dense, nested, 100 * comments / max(1, len(text.splitlines())))


def docstring_lines(tree: ast.AST) -> set[int]:
    """The numbers of all lines that belong to docstrings of modules, classes and functions."""
    lines = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            docstring = node.body[0]
            lines.update(range(docstring.lineno, docstring.end_lineno + 1))
    return lines


def contains_comprehension(node: ast.AST) -> bool:
    return any(isinstance(inner, COMPREHENSIONS) for inner in ast.walk(node) if inner is not node)


def test_density_counts_what_it_says():
    text = '"""Two\nlines."""\nx = 1  # why\n[[b for b in a] for a in x]\n'
    nodes_of_line_3 = 3  # Assign, Name, Constant
    nodes_of_line_4 = 8  # Expr; ListComp, its target and its source; ListComp, its element, target and source
    assert density(text) == ((nodes_of_line_3 + nodes_of_line_4) / 2, 3, 1, 25)
    assert density("[b for a in x for b in a]").nested == 1 and density("[b for b in x]").nested == 0
    assert density("").mean == 0


@pytest.mark.parametrize("path", CORE, ids=module_name)
def test_the_core_can_be_read_in_one_sitting(path):
    measured = density(path.read_text(encoding="utf-8"))
    assert measured.mean <= 7 and measured.dense <= 13 and measured.nested == 0, measured
    assert measured.comments >= 10 or path.stem == "__main__", measured


@pytest.mark.parametrize("path", INNER, ids=module_name)
def test_the_folders_are_hardly_denser(path):
    measured = density(path.read_text(encoding="utf-8"))
    assert measured.mean <= 8 and measured.dense <= 15 and measured.nested == 0, measured


@pytest.mark.parametrize(("readme", "heading"), [("README.md", "Reading order"), ("README.zh-TW.md", "閱讀順序")])
def test_the_readmes_name_the_core_files_in_reading_order(readme, heading):
    text = (PROJECT / readme).read_text(encoding="utf-8")
    section = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    listed = re.findall(r"^\d+\. `(\w+)\.py`", section, re.MULTILINE)
    assert listed == [*READING_ORDER, *HELPERS, "__main__"]
    assert re.findall(r"^- `(\w+)/`", section, re.MULTILINE) == list(FOLDERS)


def test_every_kind_of_input_in_the_contributors_table_has_its_test():
    text = (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.split("## Unusual and faulty input", 1)[1].split("\n## ", 1)[0]
    rows = [
        line for line in section.splitlines() if line.startswith("| ") and not line.startswith(("| input", "| ---"))
    ]
    named = [re.findall(r"`(test_\w+)`", row) for row in rows]
    assert len(rows) >= 30 and all(len(tests) == 1 for tests in named)
    written = set()
    for path in (PACKAGE.parent / "tests").rglob("test_*.py"):
        written |= set(re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE))
    assert {tests[0] for tests in named} <= written
