"""The process in which one part of a student's notebook is run: `python -m mtl_utils.lab.sandbox` with a job on stdin.

The job is {"part": number, "sources": {number: code}, "token": text} as JSON; the line of stdout that begins with the
job's token is the result as JSON.
"""

import collections
import contextlib
import io
import itertools
import json
import math
import random
import sys
from typing import Any

import torch
import torch.nn.functional as F

from mtl_utils.lab.checks import Result, check
from mtl_utils.lab.grade import no_marks

# what the notebook's first cell imports, and a check that a student's cell may call
GIVEN: dict[str, Any] = {
    "torch": torch,
    "F": F,
    "math": math,
    "random": random,
    "collections": collections,
    "itertools": itertools,
    "check": lambda *_: None,
    "__name__": "lab",
}
ALONE = "What a part needs has to stand in its own cell."
MEMORY = 2 << 30  # bytes that a student's code may take beyond what Python and torch have


def limit_memory() -> None:
    """Let further memory fail with MemoryError; where the system has no such limit, time alone is limited."""
    try:
        import resource
    except ImportError:  # Windows
        return
    # macOS has no such file: the OSError means that there is no limit
    with open("/proc/self/statm", encoding="ascii") as file:
        pages = int(file.read().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def run_parts(part: int, sources: dict[int, str]) -> Result:
    """Run the code of all parts up to one, and check that one."""
    namespace = dict(GIVEN)
    for number in sorted(sources):
        if number > part:
            break
        try:
            exec(sources[number], namespace)
        except Exception as error:  # whatever a student's code raises
            if number == part:
                return no_marks(part, f"The cell stops with {type(error).__name__}: {error}. {ALONE}")
    return check(part, namespace)


def main() -> None:
    """Read the job, run it without a word, print the result."""
    job = json.loads(sys.stdin.read())
    sources = {int(number): source for number, source in job["sources"].items()}
    with contextlib.suppress(OSError, ValueError):  # no such limit here
        limit_memory()
    silent = io.StringIO()
    with contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
        result = run_parts(job["part"], sources)
    values = {"marks": result.marks, "most": result.most, "remarks": result.remarks}
    print("\n" + job["token"] + json.dumps(values))


if __name__ == "__main__":
    main()
