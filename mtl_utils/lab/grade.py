"""Marks for a student's notebook: each part is run in a process of its own, with limits of time and memory.

The limits hold back endless loops and runaway memory, and a look at the code holds back the common ways to reach files
and the network. That is no wall against malice: grade what strangers send in a container.
"""

import ast
import json
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from mtl_utils.files import PROJECT, UserError, read_json
from mtl_utils.lab.checks import CASES, NAMES, Result

SECONDS = 60  # for a part, the start of torch included
# what a part may import
ALLOWED = {
    "__future__", "bisect", "collections", "functools", "heapq", "itertools", "math", "operator", "random", "torch",
    "typing",
}  # fmt: skip
# what it may not use: names, unless it gives them a meaning of its own, and attributes
NAMES_REFUSED = {"open", "exec", "eval", "compile", "__import__", "breakpoint", "__builtins__"}
ATTRIBUTES_REFUSED = {
    "os", "sys", "subprocess", "load", "save", "__class__", "__subclasses__", "__globals__", "__builtins__", "__dict__",
    "__bases__", "__mro__", "__code__",
}  # fmt: skip


def grade(notebook: Path) -> Iterator[Result]:
    """The marks of each part of a notebook, one after another. Raises UserError where the file is no notebook."""
    sources = read_parts(notebook)
    for part in NAMES:
        yield grade_part(part, sources)


def read_parts(notebook: Path) -> dict[int, str]:
    """The code of each part, that of the last cell that defines its function.

    Raises UserError where the file is no notebook.
    """
    content = read_json(notebook, "name a notebook of the lab")
    cells = content.get("cells") if isinstance(content, dict) else None
    if not isinstance(cells, list):
        raise UserError(f"{notebook} holds no cells: name a notebook of the lab.")
    sources = {}
    for cell in cells:
        text = source_of(cell)
        for part, name in NAMES.items():
            if re.search(rf"^(def {name}\(|{name} *=)", text, re.MULTILINE):
                sources[part] = text
    return sources


def source_of(cell: object) -> str:
    """The text of a code cell, "" for any other."""
    if not isinstance(cell, dict) or cell.get("cell_type") != "code":
        return ""
    source = cell.get("source", "")
    return "".join(source) if isinstance(source, list) else str(source)


def grade_part(part: int, sources: dict[int, str]) -> Result:
    """The marks of one part; the parts before it are run too, since it may call them."""
    if part not in sources:
        return no_marks(part, f"The notebook has no cell that defines {NAMES[part]}.")
    remark = forbidden(sources[part])
    if remark:
        return no_marks(part, remark)
    harmless = {number: text for number, text in sources.items() if not forbidden(text)}
    token = secrets.token_hex()  # a line that a student's code prints is not taken for the result
    job = json.dumps({"part": part, "sources": harmless, "token": token})
    command = [sys.executable, "-m", "mtl_utils.lab.sandbox"]
    try:
        child = subprocess.run(command, input=job, capture_output=True, text=True, timeout=SECONDS, cwd=PROJECT)
    except subprocess.TimeoutExpired:
        return no_marks(part, f"It does not end within {SECONDS} seconds: look for a loop that never stops.")
    return read_result(part, child, token)


def read_result(part: int, child: "subprocess.CompletedProcess[str]", token: str) -> Result:
    """What a finished process has printed in the line with the token."""
    for line in child.stdout.splitlines():
        if line.startswith(token):
            values = json.loads(line.removeprefix(token))
            return Result(part, values["marks"], values["most"], tuple(values["remarks"]))
    return no_marks(part, f"It ended the process (exit status {child.returncode}), perhaps for want of memory.")


def no_marks(part: int, remark: str) -> Result:
    """The result of a part that was not checked."""
    most = sum(points for points, _ in CASES[part])
    return Result(part, 0, most, (remark,))


def forbidden(source: str) -> str:
    """One sentence about what a part may not do, "" if it does nothing of the kind or is no Python."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return ""
    own = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    for node in ast.walk(tree):
        for module in imported(node):
            if module.split(".")[0] not in ALLOWED:
                return f"It imports {module}: only {', '.join(sorted(ALLOWED))} may be imported."
        if isinstance(node, ast.Name) and node.id in NAMES_REFUSED - own:
            return f"It uses {node.id}, which the lab does not need."
        if isinstance(node, ast.Attribute) and node.attr in ATTRIBUTES_REFUSED:
            return f"It uses {node.attr}, which the lab does not need."
    return ""


def imported(node: ast.AST) -> list[str]:
    """The modules that a statement imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [node.module or "."]
    return []
