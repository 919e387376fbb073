from collections import Counter

import pytest
import torch
from helpers import ListSet, objects, photo
from torch import Tensor
from torchvision import tv_tensors

from mtl_utils import checkpoint
from mtl_utils.data import MiniSet, classes_of, find_classes
from mtl_utils.files import UserError
from mtl_utils.model import UnifiedModel
from mtl_utils.replay import (
    ReplayBuffer,
    class_balanced,
    collect_head_features,
    herding,
    pack,
    select_exemplars,
    unpack,
)
from mtl_utils.tasks import IGNORE, TASKS
from mtl_utils.transforms import to_batch


def seeded_generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cls_set(labels: list[int]) -> ListSet:
    return ListSet("cls", [(photo(8, 8), {"label": torch.tensor(label)}) for label in labels])


def seg_set(members: list[set[int]]) -> ListSet:
    """Images that show the given classes, background and border."""
    samples = []
    for classes in members:
        mask = torch.zeros(8, 8, dtype=torch.uint8)
        mask[0] = IGNORE
        for row, c in enumerate(classes, 1):
            mask[row] = c
        samples.append((photo(8, 8), {"mask": tv_tensors.Mask(mask)}))
    return ListSet("seg", samples)


def count_classes(dataset: ListSet, chosen: list[int]) -> Counter:
    return Counter(c for i in chosen for c in set(classes_of(dataset.task, dataset[i][1])))


@pytest.fixture
def full_buffer(tiny_root) -> ReplayBuffer:
    """A buffer that all three tasks have filled."""
    buffer = ReplayBuffer(5)
    for task in TASKS:
        buffer.store(MiniSet(task, tiny_root, "train", find_classes(tiny_root)), seeded_generator())
    return buffer


# ---------------------------------------------------------------- what is kept


def test_capacity_is_kept_for_every_task(full_buffer):
    assert {task: len(stored) for task, stored in full_buffer.samples.items()} == {"seg": 5, "det": 5, "cls": 5}


def test_a_set_smaller_than_the_capacity_is_kept_whole():
    buffer = ReplayBuffer(50)
    buffer.store(cls_set([0, 1, 2, 1]), seeded_generator())
    assert sorted(int(t["label"]) for _, t in buffer.samples["cls"]) == [0, 1, 1, 2]


def test_capacity_zero_keeps_nothing():
    buffer = ReplayBuffer(0)
    buffer.store(cls_set([0, 1]), seeded_generator())
    assert buffer.samples == {}


def test_no_image_is_chosen_twice():
    chosen = select_exemplars("balanced", cls_set([0, 1, 2] * 10), 20, seeded_generator())
    assert len(chosen) == len(set(chosen)) == 20


def test_stored_images_are_the_original_ones():
    dataset = cls_set([0, 1, 2])
    buffer = ReplayBuffer(3)
    buffer.store(dataset, seeded_generator())
    for image, target in buffer.samples["cls"]:
        original = next(i for i, t in dataset.samples if t["label"] == target["label"])
        assert image.dtype == torch.uint8 and torch.equal(image, original)


# ---------------------------------------------------------------- balance


@pytest.mark.parametrize("count", [10, 17, 30])
def test_classes_of_images_are_stored_equally_often(count):
    dataset = cls_set(list(range(10)) * 6)
    counts = count_classes(dataset, select_exemplars("balanced", dataset, count, seeded_generator()))
    assert len(counts) == 10
    assert max(counts.values()) - min(counts.values()) <= 1


def test_a_frequent_class_does_not_crowd_out_the_others():
    dataset = cls_set([0] * 50 + [1] * 3 + [2] * 3 + [3] * 3)
    assert set(count_classes(dataset, select_exemplars("balanced", dataset, 12, seeded_generator())).values()) == {3}


def test_when_rare_classes_are_used_up_the_others_fill_the_rest():
    dataset = cls_set([0] * 50 + [1] * 2)
    assert count_classes(dataset, select_exemplars("balanced", dataset, 12, seeded_generator())) == {0: 10, 1: 2}


@pytest.mark.parametrize("seed", range(5))
def test_every_class_of_masks_is_stored_where_there_is_room(seed):
    torch.manual_seed(seed)
    members = [{15} | ({c} if c != 15 else set()) for c in range(1, 21)]  # one image for each class, person in all
    members += [{15}] * 60
    dataset = seg_set([members[i] for i in torch.randperm(len(members))])
    counts = count_classes(dataset, select_exemplars("balanced", dataset, 20, seeded_generator(seed)))
    assert set(counts) == set(range(1, 21))


def test_detection_images_are_balanced_by_what_they_show():
    targets = [objects([[0, 0, 8, 8]] * 3, [0, 0, 0])] * 20 + [objects([[0, 0, 8, 8]], [2])] * 3 + [objects([], [])] * 3
    dataset = ListSet("det", [(photo(8, 8), target) for target in targets])
    chosen = select_exemplars("balanced", dataset, 9, seeded_generator())
    assert count_classes(dataset, chosen) == {0: 3, 2: 3}, "and three images without objects"


@pytest.mark.parametrize("seed", range(5))
def test_few_images_show_as_many_classes_as_they_can(seed):
    dataset = seg_set([{1}, {2}, {3}, {4}] * 5 + [{1, 2}, {3, 4}])
    chosen = select_exemplars("balanced", dataset, 2, seeded_generator(seed))
    assert sorted(chosen) == [20, 21], "the two images that show all four classes"


def test_of_images_with_equally_many_wanted_classes_the_first_in_rank_is_chosen():
    rankings = {1: [7, 5, 9], 2: [9, 4], 3: [5]}
    assert class_balanced(rankings, 1) == [5], "5 shows 1 and 3, as 9 shows 1 and 2, and comes first; 7 shows one class"
    # 2 is chosen least now: 9 shows 1 as well, but that is chosen already, so 9 and 4 cover one wanted class each
    assert class_balanced(rankings, 2) == [5, 9]


# ---------------------------------------------------------------- sampling


@pytest.mark.parametrize("method", ["sample", "sample_with_logits", "sample_indices"])
def test_more_than_ten_images_of_a_task_in_a_step_are_refused(method):
    buffer = ReplayBuffer(20)
    buffer.store(cls_set([0, 1] * 10), seeded_generator())
    buffer.stored_logits["cls"] = torch.rand(20, 3, 1, 1)
    sample = getattr(buffer, method)
    assert len(buffer.sample("cls", 10, seeded_generator())) == 10
    sample("cls", 10, seeded_generator())
    with pytest.raises(AssertionError, match="11 replayed images"):
        sample("cls", 11, seeded_generator())


def test_sampling_does_not_repeat_an_image():
    buffer = ReplayBuffer(6)
    buffer.store(cls_set(list(range(6))), seeded_generator())
    generator = seeded_generator()
    for _ in range(50):
        labels = [int(t["label"]) for _, t in buffer.sample("cls", 4, generator)]
        assert len(labels) == len(set(labels)) == 4


def test_sampling_more_than_is_stored_gives_all():
    buffer = ReplayBuffer(6)
    buffer.store(cls_set([0, 1, 2]), seeded_generator())
    assert sorted(int(t["label"]) for _, t in buffer.sample("cls", 8, seeded_generator())) == [0, 1, 2]


def test_every_stored_image_is_sampled_equally_often():
    buffer = ReplayBuffer(6)
    buffer.store(cls_set(list(range(6))), seeded_generator())
    generator = seeded_generator()
    counts = Counter(int(t["label"]) for _ in range(3000) for _, t in buffer.sample("cls", 2, generator))
    assert all(abs(counts[label] - 1000) < 130 for label in range(6)), "five standard deviations"


def test_selection_and_sampling_are_decided_by_the_generator():
    dataset = cls_set(list(range(5)) * 8)
    chosen = [select_exemplars("balanced", dataset, 10, seeded_generator(seed)) for seed in (1, 1, 2)]
    assert chosen[0] == chosen[1] != chosen[2]


# ---------------------------------------------------------------- through a file


def test_buffer_comes_back_from_a_checkpoint_bit_by_bit(full_buffer, tmp_path):
    checkpoint.save(tmp_path / "buffer.pt", {"buffer": full_buffer.state_dict()})
    restored = ReplayBuffer(0)
    restored.load_state_dict(checkpoint.load(tmp_path / "buffer.pt")["buffer"])
    assert restored.capacity == full_buffer.capacity
    assert list(restored.samples) == list(full_buffer.samples)
    for task in TASKS:
        for before, after in zip(full_buffer.samples[task], restored.samples[task], strict=True):
            assert_same(before[0], after[0])
            assert list(before[1]) == list(after[1])
            for name in before[1]:
                assert_same(before[1][name], after[1][name])


def assert_same(a: Tensor, b: Tensor) -> None:
    assert type(a) is type(b) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, tv_tensors.BoundingBoxes):
        assert (a.format, a.canvas_size) == (b.format, b.canvas_size)


def test_state_holds_plain_tensors_only(full_buffer):
    for stored in full_buffer.state_dict()["exemplars"].values():
        assert all(type(value) is Tensor for sample in stored for value in sample.values())


def test_unpack_undoes_pack_for_an_image_without_objects():
    image, target = unpack(pack(photo(20, 30), objects([], [], size=(20, 30))))
    assert image.shape == (3, 20, 30)
    assert target["boxes"].shape == (0, 4) and target["boxes"].canvas_size == (20, 30)


def test_herding_by_hand():
    """Of three directions the middle one is nearest to their mean; of the outer two the first."""
    features = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 3.0]])
    assert select_exemplars("herding", cls_set([0, 0, 0]), 3, seeded_generator(), features) == [2, 0, 1]


def test_herding_keeps_the_mean_better_than_random_selection():
    features = torch.nn.functional.normalize(torch.randn(60, 8) + torch.randint(0, 2, (60, 1)) * 2, dim=1)
    far = lambda chosen: (features[chosen].mean(0) - features.mean(0)).norm().item()  # noqa: E731
    chosen = select_exemplars("herding", cls_set([0] * 60), 10, seeded_generator(), features)
    assert len(set(chosen)) == 10
    assert far(chosen) < min(far(torch.randperm(60)[:10].tolist()) for _ in range(50))


def test_random_selection_repeats_nothing_and_follows_the_generator():
    first, again = (select_exemplars("random", cls_set([0] * 9), 5, seeded_generator()) for _ in range(2))
    assert first == again and len(set(first)) == 5


def test_an_unknown_selection_is_named():
    with pytest.raises(UserError, match="'best': choose balanced, random or herding"):
        select_exemplars("best", cls_set([0]), 1, seeded_generator())


def test_stored_logits_and_fisher_information_survive_the_checkpoint():
    buffer, other = ReplayBuffer(2), ReplayBuffer(2)
    buffer.store(cls_set([0, 1]), seeded_generator())
    buffer.stored_logits["cls"], buffer.fisher["weight"] = torch.rand(2, 3, 4, 4), torch.rand(5)
    other.load_state_dict(buffer.state_dict())
    samples, stored = other.sample_with_logits("cls", 1, seeded_generator())
    index = next(i for i, (image, _) in enumerate(buffer.samples["cls"]) if torch.equal(image, samples[0][0]))
    assert torch.equal(stored[0], buffer.stored_logits["cls"][index])
    assert torch.equal(other.fisher["weight"], buffer.fisher["weight"])


def test_a_buffer_of_one_image_keeps_one():
    buffer = ReplayBuffer(1)
    buffer.store(cls_set([0, 1, 2]), seeded_generator())
    assert len(buffer.samples["cls"]) == 1


@pytest.mark.parametrize("seed", range(6))
def test_images_without_objects_are_a_class_of_their_own(seed):
    """Two of six images show nothing, the others classes 1 and 2: of three exemplars each kind is one."""
    boxes = [[10.0, 10, 40, 40]]
    targets = [objects(boxes, [label]) for label in (1, 1, 2, 2)] + [objects([], [])] * 2
    dataset = ListSet("det", [(photo(96, 96), target) for target in targets])
    chosen = select_exemplars("balanced", dataset, 3, seeded_generator(seed))
    assert sorted(index // 2 for index in chosen) == [0, 1, 2]


def plain_herding(features: list[list[float]], count: int) -> list[int]:
    """Herding in plain Python: the next image is the one that brings the mean of those chosen nearest to the mean."""
    unit = [[x / sum(y * y for y in row) ** 0.5 for x in row] for row in features]
    size = len(unit[0])
    mean = [sum(row[d] for row in unit) / len(unit) for d in range(size)]
    chosen: list[int] = []
    while len(chosen) < count:
        gaps = {}
        for i in range(len(unit)):
            if i not in chosen:
                group = [unit[j] for j in [*chosen, i]]
                gaps[i] = sum((mean[d] - sum(row[d] for row in group) / len(group)) ** 2 for d in range(size))
        chosen.append(min(gaps, key=gaps.get))
    return chosen


@pytest.mark.parametrize("seed", range(3))
def test_herding_agrees_with_plain_python(seed):
    features = torch.rand(15, 4, generator=seeded_generator(seed))
    assert herding(features) == plain_herding(features.tolist(), 15)


def test_herding_ranks_within_the_classes():
    """As in iCaRL: each class keeps its own most typical image, though all of class 1 lie far from the mean of all."""
    features = torch.tensor([[1.0, 0.0], [1.0, 0.4], [1.0, 0.2], [0.0, 1.0], [-0.4, 1.0], [-0.1, 1.0]])
    chosen = select_exemplars("herding", cls_set([0, 0, 0, 1, 1, 1]), 2, seeded_generator(), features)
    assert chosen == [2, 5]
    four = select_exemplars("herding", cls_set([0, 0, 0, 1, 1, 1]), 4, seeded_generator(), features)
    assert four[:2] == chosen and len({index // 3 for index in four[2:]}) == 2


def test_an_image_of_two_classes_is_chosen_once_and_counts_for_both():
    boxes = [[10.0, 10, 40, 40], [50.0, 50, 80, 80]]
    targets = [objects(boxes, [0, 1]), objects(boxes[:1], [0]), objects(boxes[:1], [2])]
    dataset = ListSet("det", [(photo(96, 96), target) for target in targets])
    features = torch.tensor([[1.0, 0.1], [1.0, 0.9], [0.0, 1.0]])
    for selection in ("balanced", "herding"):
        everything = select_exemplars(selection, dataset, 5, seeded_generator(), features)
        assert sorted(everything) == [0, 1, 2]


def test_head_features_are_those_of_the_letterboxed_images_with_the_places_of_the_pictures():
    model = UnifiedModel(3, 3).eval()
    samples = [(photo(40, 80), {}), (photo(64, 64), {}), (photo(90, 30), {})]
    features, contents = collect_head_features(model, samples, 64, "cpu")
    assert contents.tolist() == [[0, 0, 64, 32], [0, 0, 64, 64], [0, 0, 21, 64]]
    images, content = to_batch([image for image, _ in samples], 64)
    expected = model.head_features(images, content)
    assert features.shape == expected.shape == (3, 448, 8, 8) and torch.allclose(features, expected, atol=1e-5)
