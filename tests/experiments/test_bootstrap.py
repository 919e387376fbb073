"""The bootstrap over images: each resample against the metric of a set that holds just these images."""

import json

import numpy as np
import pytest
import torch
from helpers import CLASSES, ListSet, det_set, objects, photo
from torchvision import tv_tensors

from mtl_utils import files
from mtl_utils.evaluation import classification_metrics, detection_metrics, segmentation_metrics
from mtl_utils.experiments import bootstrap
from mtl_utils.experiments.outcomes import average_precision, collect_outcomes, metric_of, pixel_matrices
from mtl_utils.experiments.results import read_outcomes


def seg_set(count: int) -> tuple[ListSet, list]:
    masks = [torch.randint(0, 4, (12, 10), dtype=torch.uint8) for _ in range(count)]
    predictions = [torch.where(torch.rand(12, 10) < 0.6, mask, torch.randint(0, 4, (12, 10)).byte()) for mask in masks]
    return ListSet("seg", [(photo(12, 10), {"mask": tv_tensors.Mask(mask)}) for mask in masks]), predictions


def resampled(dataset: ListSet, predictions: list, indices: np.ndarray) -> np.ndarray:
    """The metric on resamples of these indices, from the outcomes of the images."""
    outcomes = collect_outcomes(dataset, predictions)
    outcomes = json.loads(json.dumps(outcomes))  # as they are read from a file
    return metric_of(dataset.task, outcomes, bootstrap.times_chosen(indices))


def test_resamples_of_segmentation_are_the_metric_of_their_images():
    dataset, predictions = seg_set(5)
    indices = bootstrap.resample_indices(5, 20)
    for chosen, value in zip(indices, resampled(dataset, predictions, indices), strict=True):
        own = ListSet("seg", [dataset.samples[i] for i in chosen])
        assert value == pytest.approx(segmentation_metrics(own, [predictions[i] for i in chosen]).value)


def test_resamples_of_classification_are_the_metric_of_their_images():
    labels = torch.randint(0, 3, (7,))
    dataset = ListSet("cls", [(photo(8, 8), {"label": label}) for label in labels])
    predictions, indices = list(torch.rand(7, 3)), bootstrap.resample_indices(7, 20)
    for chosen, value in zip(indices, resampled(dataset, predictions, indices), strict=True):
        own = ListSet("cls", [dataset.samples[i] for i in chosen])
        assert value == pytest.approx(classification_metrics(own, [predictions[i] for i in chosen]).value)


def random_detections(target: dict) -> dict:
    """The true boxes, shifted a little, some with wrong names, and one that is nowhere."""
    boxes = torch.cat([target["boxes"].as_subclass(torch.Tensor) + torch.rand(4) * 6, torch.tensor([[1.0, 1, 9, 9]])])
    labels = torch.cat([target["labels"], torch.tensor([0])])
    wrong = torch.rand(len(labels)) < 0.3
    labels = torch.where(wrong, torch.randint(0, 3, (len(labels),)), labels)
    return {"boxes": boxes, "scores": torch.rand(len(labels)), "labels": labels}


def test_resamples_of_detection_are_the_metric_of_their_images(tmp_path):
    corners = lambda: (torch.rand(2) * 40).tolist()  # noqa: E731
    targets = []
    for _ in range(6):
        boxes = [[x, y, x + 25, y + 30] for x, y in (corners() for _ in range(3))]
        targets.append(objects(boxes, torch.randint(0, 3, (3,)).tolist(), [False, False, len(targets) == 2]))
    predictions = [random_detections(target) for target in targets]
    indices = bootstrap.resample_indices(6, 12)
    dataset = det_set(tmp_path / "all", targets)
    dataset.ids.reverse(), dataset.samples.reverse()  # the order of the set is not that of its ids
    values = resampled(dataset, predictions[::-1], indices)
    for n, (chosen, value) in enumerate(zip(indices, values, strict=True)):
        picks = [5 - i for i in chosen]
        own = det_set(tmp_path / str(n), [targets[i] for i in picks])
        assert value == pytest.approx(detection_metrics(own, [predictions[i] for i in picks]).value)


def test_average_precision_by_hand():
    """Two objects; a hit, a miss, a hit: precision 1 up to recall .5, then 2 / 3: (51 + 50 * 2 / 3) / 101."""
    once = np.ones((1, 3))
    (value,) = average_precision([1, -2, 3], np.array([2.0]), once)
    assert value == pytest.approx((51 + 50 * 2 / 3) / 101)
    # the third image's object is in no resample: the hit is the only object
    (alone,) = average_precision([1, -2, 3], np.array([1.0]), np.array([[1.0, 1.0, 0.0]]))
    assert alone == pytest.approx(1.0)
    (never,) = average_precision([1], np.array([2.0]), once)
    assert never == pytest.approx(51 / 101), "the other object is never found"


def test_the_resample_of_every_image_once_is_the_set():
    dataset, predictions = seg_set(4)
    outcomes = collect_outcomes(dataset, predictions)
    value = segmentation_metrics(dataset, predictions).value
    assert bootstrap.metric_of_set("seg", outcomes, 4) == pytest.approx(value)


def test_resamples_are_the_same_for_every_run():
    assert np.array_equal(bootstrap.resample_indices(60), bootstrap.resample_indices(60))
    assert bootstrap.resample_indices(60).shape == (1000, 60)


def test_interval_of_a_proportion_agrees_with_the_textbook():
    """48 hits of 60: .8 with a standard error of sqrt(.8 * .2 / 60) = .0516, so about .70 to .90."""
    dataset = ListSet("cls", [(photo(8, 8), {"label": torch.tensor(int(i < 48))}) for i in range(60)], CLASSES)
    outcomes = collect_outcomes(dataset, [torch.tensor([0.0, 1.0, 0.0])] * 60)
    values = bootstrap.bootstrap_metric("cls", outcomes, 60)
    low, high = bootstrap.interval(values)
    assert values.std() == pytest.approx(0.0516, abs=0.004)
    assert (low, high) == (pytest.approx(0.70, abs=0.02), pytest.approx(0.90, abs=0.02))


# of the objects' classes in a sample of 60 that shows them all, about as in val: seven classes are in one image each
IMAGES_OF_CLASS = (11, 8, 6, 5, 4, 4, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1)
OBJECTS = len(IMAGES_OF_CLASS)
ALL = OBJECTS + 1  # with background


def population_of_masks(rng: np.random.Generator, names: np.ndarray, skill: np.ndarray) -> np.ndarray:
    """Confusion matrices (images, ALL, ALL) of images that hold background and one class each; skill: of each class."""
    matrices = np.zeros((len(names), ALL, ALL))
    for matrix, name in zip(matrices, names, strict=True):
        right = rng.beta(4 * skill[name], 4 * (1 - skill[name]))  # of the object's 20 pixels
        matrix[name, name] = 20 * right
        matrix[name, 0] = 12 * (1 - right)
        matrix[name, rng.integers(1, ALL)] += 8 * (1 - right)  # taken for another class
        invented = 10 * (1 - right)  # background that is called this class, or another one
        matrix[0, name] += invented / 2
        matrix[0, rng.integers(1, ALL)] += invented / 2
        matrix[0, 0] = 80 - invented
    return matrices


def miou_of(matrices: np.ndarray) -> np.ndarray:
    """mIoU (...) of confusion matrices (..., C, C), classes without a pixel left out."""
    right = np.diagonal(matrices, axis1=-2, axis2=-1)
    union = matrices.sum(-1) + matrices.sum(-2) - right
    iou = np.divide(right, union, out=np.full_like(right, np.nan), where=union > 0)
    return np.nanmean(iou, -1)


def coverage(every_class: bool, stratified: bool) -> tuple[float, float, float]:
    """How often 95 % intervals of a mIoU, and of a ratio and a difference of two, hold the truth, over samples.

    every_class: whether the sample is chosen to show every class. stratified: whether a resample has as many images of
    each class as the sample.
    """
    rng = np.random.default_rng(0)
    rarity = np.array(IMAGES_OF_CLASS) / sum(IMAGES_OF_CLASS)
    names = 1 + rng.choice(OBJECTS, 4000, p=rarity)
    skill = rng.uniform(0.4, 0.9, ALL)
    one, other = population_of_masks(rng, names, skill), population_of_masks(rng, names, skill - 0.1)
    truth = miou_of(one.sum(0))
    other_truth = miou_of(other.sum(0))
    held = np.zeros(3)
    for _ in range(SAMPLES):
        chosen = rng.integers(0, 4000, 60)
        if every_class:
            of_class = [np.flatnonzero(names == c + 1) for c in range(OBJECTS)]
            chosen = np.concatenate([rng.choice(of_class[c], IMAGES_OF_CLASS[c]) for c in range(OBJECTS)])
        strata = [np.flatnonzero(names[chosen] == c) for c in range(1, ALL)] if stratified else [np.arange(60)]
        counts = np.zeros((300, 60))  # how often each image is in a resample
        for stratum in strata:
            if len(stratum):
                even = np.full(len(stratum), 1 / len(stratum))
                counts[:, stratum] = rng.multinomial(len(stratum), even, 300)
        first = miou_of((counts @ one[chosen].reshape(60, -1)).reshape(-1, ALL, ALL))
        second = miou_of((counts @ other[chosen].reshape(60, -1)).reshape(-1, ALL, ALL))
        known = (truth, other_truth / truth, other_truth - truth)
        for place, draws in enumerate((first, second / first, second - first)):
            low, high = bootstrap.interval(draws)
            held[place] += low <= known[place] <= high
    of_miou, of_ratio, of_difference = held / SAMPLES
    return of_miou, of_ratio, of_difference


SAMPLES = 300


def test_intervals_of_comparisons_hold_the_truth_about_as_often_as_they_promise_and_those_of_miou_do_not():
    """A class that one image shows is not in every resample, and counts 0 there if it is predicted: in both alike."""
    of_miou, of_ratio, of_difference = coverage(every_class=True, stratified=False)
    assert 0.91 <= of_ratio <= 0.98 and 0.88 <= of_difference <= 0.98
    assert of_miou < 0.9
    _, *stratified = coverage(every_class=True, stratified=True)
    assert max(stratified) < 0.85, "resamples with a fixed number of images of each class are too even"


def test_where_the_sample_may_lack_classes_comparisons_hold_and_miou_does_not():
    of_miou, of_ratio, of_difference = coverage(every_class=False, stratified=False)
    assert of_ratio >= 0.88 and of_difference >= 0.78 and of_miou < 0.5


def test_the_val_masks_of_the_published_runs_show_every_class():
    outcomes = read_outcomes(files.STUDY_RESULTS / "full", "replay", 0)["cls"]["seg"]
    assert (pixel_matrices(outcomes).sum((0, 2)) > 0).all()
