"""The exercises of the six notebooks: each check accepts the folded answer of the notebook and refuses others."""

import json
import re
from types import SimpleNamespace

import pytest
import torch

from mtl_utils import files
from mtl_utils.data import Classes
from mtl_utils.evaluation import TaskMetrics, predict
from mtl_utils.lab import exercises
from mtl_utils.model import UnifiedModel, whole_input
from mtl_utils.tasks import VOC_CLASSES

NOTEBOOKS = sorted(files.NOTEBOOKS.glob("0*.ipynb"))
CONFUSION = [[50, 0, 0], [10, 30, 0], [30, 0, 20]]  # of background and two classes


def metrics_of(task: str, value: float, confusion: list | None = None) -> TaskMetrics:
    return TaskMetrics(task, value, 0.1, {}, images=5, confusion=confusion)


STAGES = {
    "seg": {"seg": metrics_of("seg", 0.5, CONFUSION)},
    "det": {"seg": metrics_of("seg", 0.48), "det": metrics_of("det", 0.2)},
    "cls": {"seg": metrics_of("seg", 0.47), "det": metrics_of("det", 0.22), "cls": metrics_of("cls", 0.4)},
}


class OneHot(torch.nn.Module):
    """A network that predicts class 0 for dark images and class 1 for light ones."""

    def __init__(self) -> None:
        super().__init__()
        self.network = UnifiedModel(2, 2)

    def forward(self, images, content=None):
        outputs = self.network(images, content)
        light = images.mean((1, 2, 3))
        return outputs._replace(classification=torch.stack([0.5 - light, light - 0.5], dim=1))


@pytest.fixture(scope="module")
def names():
    """What the answers of the notebooks may use: the names that their notebooks have defined by then."""
    torch.manual_seed(0)
    grey = [torch.full((3, 40, 40), value, dtype=torch.uint8) for value in (20, 230, 30, 220, 240)]
    labels = [0, 1, 1, 1, 0]
    samples = [(image, {"label": torch.tensor(label)}) for image, label in zip(grey, labels, strict=True)]
    results = {task: SimpleNamespace(metrics=STAGES[task]) for task in STAGES}
    run = SimpleNamespace(
        classes=Classes(det=("cat",), det_ids=(1,), cls=("dark", "light")),
        data=lambda task, split: SimpleNamespace(samples=samples),
        settings=SimpleNamespace(eval_size=64),
        result=results.__getitem__,
    )
    return {
        "02": {"model": UnifiedModel(2, 2).eval(), "images": torch.rand(1, 3, 64, 64)},
        "03": {"run": run, "result": results["seg"]},
        "04": {"run": run, "result": results["det"]},
        "05": {"run": run, "result": results["cls"], "model": OneHot().eval()},
        "06": {"run": run, "after_stages": STAGES},
    }


def about(name: str, names: dict) -> tuple:
    """What a check is given beside the answer, as in the notebook."""
    return {
        "02.3": lambda: (names["02"]["model"], names["02"]["images"]),
        "03.3": lambda: (CONFUSION, VOC_CLASSES),
        "04.3": lambda: (0.5, 0.48),
        "05.2": lambda: (0.6,),
        "06.3": lambda: (STAGES,),
    }.get(name, tuple)()


def folded_answers() -> dict[str, str]:
    """The code of every folded answer by the name of its exercise."""
    found = {}
    for path in NOTEBOOKS:
        name = ""
        for cell in json.loads(path.read_text())["cells"]:
            text = "".join(cell["source"])
            called = re.search(r'exercises\.check\("(\d\d\.\d)"', text)
            if cell["cell_type"] == "code" and called:
                name = called[1]
            block = re.search(r"<details>.*```python\n(.*?)```", text, re.DOTALL)
            if cell["cell_type"] == "markdown" and block and name:
                found[name] = block[1]
    return found


def test_every_exercise_has_a_check_and_a_folded_answer():
    assert folded_answers().keys() == exercises.CASES.keys()


@pytest.mark.parametrize("name", exercises.CASES)
def test_the_folded_answer_is_right(name, names, capsys):
    space = dict(names.get(name[:2], {}))
    exec(folded_answers()[name], space)
    exercises.check(name, space["answer"], *about(name, names))
    assert capsys.readouterr().out == f"{name}: right\n"


@pytest.mark.parametrize("name", exercises.CASES)
def test_no_answer_and_wrong_ones_get_a_sentence(name, names, capsys):
    exercises.check(name, None, *about(name, names))
    assert capsys.readouterr().out == f"{name}: no answer yet\n"
    for wrong in (-7.0, (1, 2, 3, 4, 5), "a guess", torch.zeros(3), ((1, 2), (3, 4)), {1}):
        exercises.check(name, wrong, *about(name, names))
        assert capsys.readouterr().out.startswith(f"{name}: not yet. ")


def test_answers_may_be_rounded_to_two_digits(capsys):
    for name, answer in (("01.1", (0.73, 0.03)), ("06.1", 0.039), ("03.2", (0.99, 0.5)), ("05.1", 0.5)):
        exercises.check(name, answer)
        assert capsys.readouterr().out == f"{name}: right\n"


def test_mean_features_give_the_mean_logits(names):
    """What exercise 02.3 rests on."""
    model, images = names["02"]["model"], names["02"]["images"]
    hidden = model.head_features(images, whole_input(images)).mean((2, 3), keepdim=True)
    assert exercises.mean_logits(model.head.last(hidden)[:, -2:].flatten(1).detach(), model, images) == ""
    assert exercises.mean_logits(model.head.last(hidden)[:, :2].flatten(1).detach(), model, images)


def test_a_loop_of_ones_own_counts_right_images(names):
    model, run = names["05"]["model"], names["05"]["run"]
    samples = run.data("cls", "val").samples
    predictions = predict(model, [image for image, _ in samples], 64)
    right = sum(
        int(p.probabilities.argmax()) == int(t["label"]) for p, (_, t) in zip(predictions, samples, strict=True)
    )
    assert right / len(samples) == 0.6
