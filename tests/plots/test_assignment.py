"""The figure of the cells that learn an object: counted by brute force, and legible."""

import matplotlib.pyplot as plt
import pytest
from helpers import CLASSES, objects, photo

from mtl_utils.plots import assignment
from mtl_utils.transforms import Letterbox

SIZE = 96  # pixels: a map of 12 x 12 cells


@pytest.fixture(autouse=True)
def close_figures():
    """No figure outlives its test."""
    yield
    plt.close("all")


def learned(boxes: list, labels: list, crowd: list | None = None) -> list[assignment.Learned]:
    """The objects of a square image that needs no scaling."""
    sample = (photo(SIZE, SIZE), objects(boxes, labels, crowd, (SIZE, SIZE)))
    _, target = Letterbox(SIZE)(*sample)
    return assignment.learned_objects(target, SIZE)


def nearest_cells(x: float, y: float, count: int) -> set[tuple[float, float]]:
    """The centres of the cells that are nearest to a point, by trying all of them."""
    centres = [(8 * column + 4, 8 * row + 4) for row in range(12) for column in range(12)]
    return set(sorted(centres, key=lambda centre: (centre[0] - x) ** 2 + (centre[1] - y) ** 2)[:count])


def test_a_small_object_has_its_nine_nearest_cells():
    (found,) = learned([[39, 40, 50, 52]], [2])
    assert {tuple(centre) for centre in found.centres.tolist()} == nearest_cells(44.5, 46, 9)
    assert (found.number, found.label) == (1, 2)
    assert found.box.tolist() == [39, 40, 50, 52]


def test_the_smaller_one_of_two_objects_has_the_cells_that_both_claim():
    large, small = learned([[0, 0, 96, 96], [36, 36, 60, 60]], [0, 1])
    of_large = {tuple(centre) for centre in large.centres.tolist()}
    of_small = {tuple(centre) for centre in small.centres.tolist()}
    assert len(of_small) == 9 and not of_small & of_large
    # the large one's own part: the cells within 19.2 pixels of the middle along both axes
    assert of_small | of_large == {(x, y) for x in (36, 44, 52, 60) for y in (36, 44, 52, 60)} | of_small


def test_crowds_are_left_out():
    (found,) = learned([[0, 0, 90, 90], [20, 20, 40, 40]], [0, 1], [True, False])
    assert found.label == 1 and len(found.centres) == 9


def test_the_figure_counts_the_cells_and_its_texts_can_be_read():
    target = objects([[0, 0, 96, 64], [10, 10, 30, 30], [60, 20, 90, 50]], [0, 1, 2], size=(64, 96))
    sample = (photo(64, 96), target)
    figure = assignment.cell_assignment(sample, SIZE, CLASSES)
    axis = figure.axes[0]
    _, padded = Letterbox(SIZE)(*sample)
    counts = [len(each.centres) for each in assignment.learned_objects(padded, SIZE)]
    legend = [text.get_text() for text in axis.get_legend().get_texts()]
    assert legend == [f"{i}  {name}, {n} cells" for i, name, n in zip((1, 2, 3), CLASSES.det, counts, strict=True)]
    assert len(axis.patches) == 2 * sum(counts), "a rim and a face for each cell"
    assert [text.get_text() for text in axis.texts] == ["1", "2", "3"] * 2, "at the cells, then at the boxes"
    texts = [*axis.texts, *axis.get_legend().get_texts()]
    assert min(text.get_fontsize() for text in texts) >= 9
    assert axis.get_ylim() == (64, 0) and axis.get_xlim() == (0, 96), "the grey padding is not shown"
    assert len({line.get_linestyle() for line in axis.lines[1::2]}) == 3, "boxes differ in grey, too"


def test_an_image_without_objects_is_drawn():
    assert learned([], []) == []
    figure = assignment.cell_assignment((photo(64, 64), objects([], [], size=(64, 64))), SIZE, CLASSES)
    assert not figure.axes[0].patches and not figure.axes[0].texts
