"""How far a cell sees and what the map holds: against networks whose receptive field is known."""

import pytest
import torch
from helpers import CLASSES, photo
from torch import nn
from torchvision import tv_tensors

from mtl_utils.evaluation import predict
from mtl_utils.model import UnifiedModel
from mtl_utils.plots import head_maps, receptive_field


class Average(nn.Module):
    """Each feature is the mean of the image over a window of `side` pixels."""

    def __init__(self, side):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 3, side, side))

    def head_features(self, images, content):
        assert content.tolist() == [[0, 0, images.shape[3], images.shape[2]]] * len(images), "no padding"
        return nn.functional.conv2d(images, self.weight, padding=self.weight.shape[-1] // 2)


def test_influence_is_the_window_that_the_cell_really_reads():
    shares = receptive_field.influence(Average(5), torch.rand(2, 3, 33, 33))
    expected = torch.zeros(33, 33)
    expected[14:19, 14:19] = 1 / 25
    assert torch.allclose(shares, expected)


@pytest.mark.parametrize(("share", "side"), [(0.03, 1), (0.3, 3), (0.9, 5), (0.99, 5)])
def test_the_square_is_the_smallest_that_holds_the_share(share, side):
    shares = torch.zeros(33, 33)
    shares[14:19, 14:19] = 1 / 25
    assert receptive_field.square_with(shares, share) == side


def test_pixels_that_nothing_reads_have_no_influence_and_the_picture_says_both_sides():
    figure = receptive_field.receptive_field(Average(9), [photo(64, 64)], 64)
    said = [text.get_text() for text in figure.axes[0].texts]
    assert said == ["50% within 7 × 7 pixels", "90% within 9 × 9 pixels"]


def test_pictures_are_cropped_to_squares_so_that_no_padding_is_looked_at():
    """The first picture is shown as it is read: its middle, at the size that was asked for."""
    image = torch.zeros(3, 64, 128, dtype=torch.uint8)
    image[:, :, 32:96] = 200
    figure = receptive_field.receptive_field(Average(9), [tv_tensors.Image(image)], 32)
    assert (figure.axes[0].images[0].get_array() == 200).all()
    assert figure.axes[0].images[0].get_array().shape == (32, 32, 3)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return UnifiedModel(3, 3).eval()


def test_the_maps_are_the_slices_without_the_padding(model):
    image = photo(64, 32)
    detection, segmentation, classification = head_maps.head_maps(model, image, 64)
    height, width = detection.shape[1:]
    assert {height, width} == {8, 4} and (height > width) == (image.shape[1] > image.shape[2])
    assert [len(part) for part in (detection, segmentation, classification)] == [8, 21, 3]


def test_the_mean_of_the_classes_map_is_the_prediction(model):
    """The padding of the upright picture is neither in the map nor in the mean."""
    for image in (photo(64, 64), photo(64, 32)):
        *_, classification = head_maps.head_maps(model, image, 64)
        answer = predict(model, [image], 64)[0].probabilities
        assert torch.allclose(classification.mean((1, 2)).softmax(0), answer, atol=1e-5)


def test_the_picture_names_what_wins(model):
    image = photo(64, 64)
    figure = head_maps.map_contents(model, image, 64, CLASSES)
    best = CLASSES.names("cls")[int(predict(model, [image], 64)[0].probabilities.argmax())]
    assert f"{best} here?" in figure.axes[2].get_title()
    widths = [bar.get_width() for bar in figure.axes[5].patches]
    assert sum(widths) == pytest.approx(1, abs=1e-4) and len(widths) == 3
