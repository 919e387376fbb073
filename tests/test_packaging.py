"""What has to be installed: three files that agree, and nothing imported that none of them brings."""

import ast
import re
import sys
from pathlib import Path

import pytest

from mtl_utils.files import PROJECT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it to Python 3.10

METADATA = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = METADATA["project"]["optional-dependencies"]
BROUGHT_BY = {  # packages that are imported, but installed because another requires them
    "IPython": "jupyterlab",
    "PIL": "torchvision",
    "nbclient": "jupyterlab",
    "nbconvert": "jupyterlab",
    "nbformat": "jupyterlab",
    "numpy": "torchvision",
    "pandas": "seaborn",
}
COLABS_OWN = {"google"}  # google.colab is there in Colab only
FREE_OF_PLOTS = ("cli", "remedies", "prepare")  # folders that may import, at their top, what the core needs and no more


def lines(name: str) -> list[str]:
    return (PROJECT / name).read_text(encoding="utf-8").split()


def package(requirement: str) -> str:
    """The package that a requirement names."""
    return requirement.split(">=")[0]


def imported(path: Path, top_only: bool = False) -> set[str]:
    """The installed packages that a file imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in tree.body if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {"mtl_utils"} - COLABS_OWN


def required_for(names: set[str]) -> set[str]:
    """The requirements that bring these packages."""
    return {BROUGHT_BY.get(name, name) for name in names}


def test_the_readmes_way_installs_what_the_package_declares():
    declared = [*METADATA["project"]["dependencies"], *EXTRAS["notebooks"], *EXTRAS["test"]]
    assert sorted(lines("requirements.txt")) == sorted(declared)
    assert sorted(lines("requirements-dev.txt")) == sorted(EXTRAS["dev"])


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_requirements_have_lower_bounds_and_no_others(name):
    for line in lines(name):
        assert re.fullmatch(r"[\w-]+>=\d+(\.\d+)*", line), line


def test_what_is_imported_is_required_and_what_is_required_is_used():
    code = {name for path in (PROJECT / "mtl_utils").rglob("*.py") for name in imported(path)}
    lines_of_all = METADATA["project"]["dependencies"] + EXTRAS["notebooks"] + EXTRAS["export"]
    required = {package(line) for line in lines_of_all}
    assert required_for(code) | {"onnxscript"} == required, "torch.onnx imports that one"


def test_training_and_marking_get_by_with_the_dependencies():
    """Without the extra of the notebooks: of the core all imports, of the folders below the plots those at the top."""
    needed = set()
    for path in (PROJECT / "mtl_utils").glob("*.py"):
        needed |= imported(path)
    for folder in FREE_OF_PLOTS:
        for path in (PROJECT / "mtl_utils" / folder).glob("*.py"):
            needed |= imported(path, top_only=True)
    assert required_for(needed) == {package(line) for line in METADATA["project"]["dependencies"]}


def test_every_mark_is_in_use():
    """The other way round, pytest refuses a mark that is not registered."""
    registered = {line.split(":")[0] for line in METADATA["tool"]["pytest"]["ini_options"]["markers"]}
    used = set()
    for path in (PROJECT / "tests").rglob("test_*.py"):
        used |= set(re.findall(r"pytest\.mark\.(\w+)", path.read_text(encoding="utf-8")))
    assert registered <= used
