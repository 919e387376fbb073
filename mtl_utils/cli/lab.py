"""The commands of the lab: grade a student's notebook, build both notebooks from their source."""

import argparse


def grade_command(options: argparse.Namespace) -> None:
    """Print the marks of each part of a notebook and their sum."""
    from mtl_utils.lab.checks import TOTAL  # needs torch
    from mtl_utils.lab.grade import grade

    marks = 0
    for result in grade(options.notebook):
        print(result, flush=True)
        marks += result.marks
    print(f"{marks} of {TOTAL} marks")


def lab_command(options: argparse.Namespace) -> None:
    """Build and execute the student's notebook and the solution."""
    from mtl_utils.lab import build  # needs Jupyter

    for path in build.build_all():
        print(path.name)
