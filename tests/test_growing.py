"""Sets of any size: what is not kept in memory is decoded when it is asked for, and nothing else changes."""

import numpy as np
import pytest
import torch
from helpers import SETTINGS, ListSet, change_json, photo
from PIL import Image

from mtl_utils import checkpoint, data, environment, replay
from mtl_utils.data import MiniSet, Samples, find_classes
from mtl_utils.evaluation import evaluate
from mtl_utils.files import UserError
from mtl_utils.replay import Exemplars, ReplayBuffer, pack
from mtl_utils.run import build
from mtl_utils.stages import load_state
from mtl_utils.tasks import TASKS
from mtl_utils.training import Trainer, changed, named_errors, worker_count

EXIF_ORIENTATION = 0x112


def load(root, task, split="train", **options) -> MiniSet:
    return MiniSet(task, root, split, find_classes(root), **options)


def equal(first, second) -> bool:
    """Whether two samples have the same pixels and labels."""
    (image, target), (other, other_target) = first, second
    same = torch.equal(image, other) and target.keys() == other_target.keys()
    return same and all(torch.equal(target[name], other_target[name]) for name in target)


@pytest.fixture
def nothing_kept(monkeypatch):
    monkeypatch.setattr(data, "KEPT_BYTES", 0)
    monkeypatch.setattr(replay, "KEPT_BYTES", 0)


# ---------------------------------------------------------------- decoded when asked for


@pytest.mark.parametrize("room", [0, 30_000])
@pytest.mark.parametrize("task", TASKS)
def test_what_is_not_kept_is_the_same(tiny_root, task, room, monkeypatch):
    kept = load(tiny_root, task)
    assert len(kept.samples.kept) == len(kept)
    monkeypatch.setattr(data, "KEPT_BYTES", room)
    other = load(tiny_root, task)
    assert len(other.samples.kept) < len(other) and bool(other.samples.kept) == (room > 0)
    assert other.ids == kept.ids and other.paths == kept.paths and other.nbytes == kept.nbytes
    assert all(equal(first, second) for first, second in zip(kept.samples, other.samples, strict=True))
    assert equal(other.samples[-1], kept.samples[-1])
    assert all(equal(first, second) for first, second in zip(kept.samples[1:3], other.samples[1:3], strict=True))
    with pytest.raises(IndexError):
        other.samples[len(other)]
    for target, (_, expected) in zip(other.targets(), kept.samples, strict=True):
        assert target.keys() == expected.keys()
        assert all(torch.equal(target[name], expected[name]) for name in target)


def test_a_target_is_read_without_its_photograph(tiny_root, nothing_kept, monkeypatch):
    sets = [load(tiny_root, task) for task in TASKS]
    monkeypatch.setattr(data.pictures, "read_reduced", None)
    monkeypatch.setattr(data.pictures, "read_pair", None)
    assert [len(list(dataset.targets())) for dataset in sets] == [len(dataset) for dataset in sets]


def test_metrics_of_a_set_that_is_not_kept_are_the_same(tiny_root, monkeypatch):
    torch.manual_seed(0)
    model = build(SETTINGS, find_classes(tiny_root))
    kept = evaluate(model, [load(tiny_root, task, "val") for task in TASKS], 64)
    monkeypatch.setattr(data, "KEPT_BYTES", 0)
    assert evaluate(model, [load(tiny_root, task, "val") for task in TASKS], 64) == kept


def test_every_image_is_decoded_before_any_is_left_out(own_root, nothing_kept):
    broken = load(own_root, "det").paths[-1]
    broken.write_bytes(b"no picture")
    rest = load(own_root, "det", skip_broken=True)
    assert broken not in rest.paths and len(rest.left_out) == 1 and not rest.samples.kept


# ---------------------------------------------------------------- no more pixels than training needs


def enlarge(path, factor: int, orientation: int | None = None) -> None:
    """Give a photograph `factor` times as many rows and columns; it is laid on its side where that is said."""
    picture = Image.open(path).convert("RGB")
    picture = picture.resize((factor * picture.width, factor * picture.height), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    if orientation:
        picture = picture.transpose(Image.Transpose.ROTATE_90)
        exif[EXIF_ORIENTATION] = orientation
    picture.save(path, quality=95, exif=exif)


@pytest.mark.parametrize("orientation", [None, 6])
def test_a_large_photograph_is_reduced_with_its_boxes(own_root, orientation):
    before = load(own_root, "det")
    for path in before.paths:
        enlarge(path, 24, orientation)

    def larger(contents):
        for image in contents["images"]:
            image["width"], image["height"] = 24 * image["width"], 24 * image["height"]
        for annotation in contents["annotations"]:
            annotation["bbox"] = [24 * value for value in annotation["bbox"]]

    change_json(own_root, larger)
    reduced = load(own_root, "det", longest=200)
    for (image, target), (small, expected) in zip(reduced.samples, before.samples, strict=True):
        assert 200 <= max(image.shape[-2:]) < 400
        scale = image.shape[-1] / small.shape[-1]
        assert torch.allclose(target["boxes"], scale * expected["boxes"], atol=0.5)
        assert target["boxes"].canvas_size == tuple(image.shape[-2:])
        shown = torch.nn.functional.interpolate(image[None].float(), tuple(small.shape[-2:]), mode="area")[0]
        assert (shown - small).abs().mean() < 12, "the same picture, the same way up"
    whole = load(own_root, "det")
    assert max(whole.samples[0][0].shape) == 24 * max(before.samples[0][0].shape), "val keeps every pixel"


def test_a_large_mask_is_reduced_like_its_photograph(own_root):
    before = load(own_root, "seg")
    for path in before.paths:
        enlarge(path, 8)
        mask = Image.open(path.with_suffix(".png"))
        mask.resize((8 * mask.width, 8 * mask.height), Image.Resampling.NEAREST).save(path.with_suffix(".png"))
    for (image, target), (_, expected) in zip(load(own_root, "seg", longest=96).samples, before.samples, strict=True):
        assert target["mask"].shape == image.shape[-2:] and max(image.shape) < 8 * 96
        assert set(target["mask"].unique().tolist()) == set(expected["mask"].unique().tolist())


@pytest.mark.parametrize(("suffix", "mode"), [(".png", "P"), (".png", "RGB"), (".webp", "RGB"), (".bmp", "L")])
def test_other_kinds_of_large_pictures_can_be_read_too(own_root, suffix, mode):
    path = load(own_root, "cls").paths[0]
    Image.open(path).convert(mode).resize((900, 600)).save(path.with_suffix(suffix))
    path.unlink()
    image, _ = load(own_root, "cls", longest=200).samples[0]
    assert tuple(image.shape[-2:]) == ((600, 900) if mode == "P" else (150, 225))


def test_the_size_that_a_json_gives_is_compared_with_the_whole_photograph(own_root):
    path = load(own_root, "det").paths[0]
    enlarge(path, 8)
    with pytest.raises(UserError, match="its labels are for"):
        load(own_root, "det", longest=100)


def test_a_photograph_below_twice_the_needed_side_keeps_every_pixel(own_root):
    plain = load(own_root, "seg")
    side = max(plain.samples[0][0].shape[-2:])
    assert all(
        equal(*pair) for pair in zip(plain.samples, load(own_root, "seg", longest=side // 2 + 1).samples, strict=True)
    )


def test_damage_that_fewer_pixels_hide_is_left_out_all_the_same(own_root):
    path = load(own_root, "cls").paths[0]
    pixels = np.random.default_rng(0).integers(0, 255, (700, 900, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] + whole[-2:])
    rest = load(own_root, "cls", longest=100, skip_broken=True)
    assert path not in rest.paths and len(rest.left_out) == 1


def test_the_targets_of_a_training_set_are_read_without_photographs_that_are_small(
    tiny_root, nothing_kept, monkeypatch
):
    sets = [load(tiny_root, task, longest=1024) for task in TASKS]
    monkeypatch.setattr(data.pictures, "read_reduced", None)
    monkeypatch.setattr(data.pictures, "read_pair", None)
    assert [len(list(dataset.targets())) for dataset in sets] == [len(dataset) for dataset in sets]


# ---------------------------------------------------------------- workers


def trainer_of(root, task="det") -> Trainer:
    torch.manual_seed(0)
    buffer = ReplayBuffer(SETTINGS.buffer_size)
    buffer.store(load(root, "seg"), torch.Generator().manual_seed(0))
    return Trainer(build(SETTINGS, find_classes(root)), load(root, task), buffer, SETTINGS, "cpu")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_an_epoch_is_the_same_for_any_number_of_workers(tiny_root, workers, monkeypatch, one_thread):
    monkeypatch.setenv("MTL_WORKERS", "0")
    alone = trainer_of(tiny_root)
    alone.epoch()
    monkeypatch.setenv("MTL_WORKERS", workers)
    shared = trainer_of(tiny_root)
    shared.epoch()
    assert shared.history[0].loss == alone.history[0].loss
    for first, second in zip(alone.model.parameters(), shared.model.parameters(), strict=True):
        assert torch.equal(first, second)
    assert torch.equal(alone.generator.get_state(), shared.generator.get_state())


def test_every_epoch_and_every_image_has_random_numbers_of_its_own(tiny_root):
    trainer = trainer_of(tiny_root)
    before = torch.get_rng_state()
    first, second = ([batch.images for batch in trainer.loader()] for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before), "what replay draws does not depend on the loader"
    means = [image.mean().item() for batch in (*first, *second) for image in batch]
    assert len(set(means)) == len(means)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_an_image_that_vanishes_while_training_is_named_in_one_sentence(own_root, nothing_kept, workers, monkeypatch):
    monkeypatch.setenv("MTL_WORKERS", workers)
    trainer = trainer_of(own_root)
    for path in trainer.dataset.paths:
        path.unlink()
    with pytest.raises(UserError) as caught:
        trainer.epoch()
    sentence = str(caught.value)
    assert "\n" not in sentence and "Traceback" not in sentence
    assert any(sentence.startswith(str(path)) for path in trainer.dataset.paths)


@pytest.mark.parametrize(
    ("text", "kind", "sentence"),
    [
        ("DataLoader worker (pid(s) 7) exited unexpectedly", UserError, "lower MTL_WORKERS"),
        ("Caught RuntimeError in DataLoader worker process 0.", RuntimeError, "Caught"),
    ],
)
def test_what_else_goes_wrong_in_a_worker_keeps_its_kind(text, kind, sentence):
    def batches():
        yield 1
        raise RuntimeError(text)

    with pytest.raises(kind, match=sentence):
        list(named_errors(batches()))


def test_a_weight_that_differs_in_its_sign_alone_is_stored():
    base = {"a": torch.zeros(2), "b": torch.ones(2), "n": torch.tensor(3)}
    assert list(changed({"a": -torch.zeros(2), "b": torch.ones(2), "n": torch.tensor(3)}, base)) == ["a"]


def test_the_number_of_workers_can_be_chosen(monkeypatch):
    monkeypatch.delenv("MTL_WORKERS", raising=False)
    assert worker_count("cpu") == 0, "the network takes all cores"
    assert 0 <= worker_count("cuda") <= 8
    monkeypatch.setenv("MTL_WORKERS", "3")
    assert worker_count("cpu") == 3
    monkeypatch.setenv("MTL_WORKERS", "many")
    with pytest.raises(UserError, match="MTL_WORKERS is 'many'"):
        environment.workers()


# ---------------------------------------------------------------- the replay buffer


def test_the_buffer_holds_the_bytes_of_the_files(tiny_root):
    """JPEG is the most compact form that gives the same pixels."""
    dataset = load(tiny_root, "seg")
    buffer = ReplayBuffer(2)
    buffer.store(dataset, torch.Generator().manual_seed(0))
    for packed, sample in zip(buffer.samples["seg"].packed, buffer.samples["seg"], strict=True):
        path = next(
            path for path, other in zip(dataset.paths, dataset.samples, strict=True) if torch.equal(other[0], sample[0])
        )
        assert packed["picture"].numpy().tobytes() == path.read_bytes()
        assert packed["mask"].nbytes < sample[1]["mask"].nbytes / 4


@pytest.mark.parametrize("kept", [0, 1 << 20])
def test_exemplars_are_what_was_stored(kept, monkeypatch):
    monkeypatch.setattr(replay, "KEPT_BYTES", kept)
    torch.manual_seed(0)
    mask = torch.randint(0, 21, (9, 12), dtype=torch.uint8)
    samples = [(photo(9, 12), {"mask": data.tv_tensors.Mask(mask)}), (photo(20, 10), {"label": torch.tensor(3)})]
    exemplars = Exemplars([pack(*sample) for sample in samples])
    for _ in range(2):  # the second time out of memory where there is room
        assert all(equal(*pair) for pair in zip(samples, exemplars, strict=True))
    assert bool(exemplars.decoded) == (kept > 0)
    assert equal(exemplars[1:][0], samples[1]) and equal(exemplars.chosen([1, 0])[0], samples[1])


def test_a_reduced_photograph_is_stored_small(own_root):
    path = load(own_root, "cls").paths[0]
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 255, (30, 40, 3), np.uint8)).resize((2400, 1800), Image.Resampling.BICUBIC)
    smooth.save(path, quality=95)
    image, target = load(own_root, "cls", longest=600).samples[0]
    packed = pack(image, target, path)
    assert packed["picture"].nbytes < min(image.nbytes / 5, path.stat().st_size)
    stored, _ = Exemplars([packed])[0]
    assert stored.shape == image.shape and (stored.float() - image.float()).abs().mean() < 2


def test_frozen_layers_are_stored_once(tiny_root):
    trainer = trainer_of(tiny_root)
    trainer.model.backbone.trunk.requires_grad_(False)
    for _ in range(SETTINGS.epochs["det"]):
        trainer.epoch()
    state = trainer.state_dict()
    frozen = {name for name, value in trainer.model.named_parameters() if not value.requires_grad}
    assert frozen and frozen <= set(state["model"]) and not frozen & set(state["ema"])
    assert not frozen & set(state["best"]["model"])
    again = trainer_of(tiny_root)
    again.load_state_dict(state)
    expected = trainer.ema.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in again.ema.state_dict().items())
    assert again.best.weights.keys() == trainer.best.weights.keys()
    assert all(torch.equal(value, trainer.best.weights[name]) for name, value in again.best.weights.items())


def test_a_list_set_needs_no_files():
    dataset = ListSet("cls", [(photo(8, 8), {"label": torch.tensor(number)}) for number in range(3)])
    assert [int(target["label"]) for target in dataset.targets()] == [0, 1, 2]
    assert not isinstance(dataset.samples, Samples)


# ---------------------------------------------------------------- the whole of COCO


def test_classes_come_from_the_file_whatever_their_number(own_root):
    for split in ("train", "val"):

        def more(contents):
            contents["categories"] = [{"id": number, "name": f"thing {number}"} for number in range(1, 121)]

        change_json(own_root, more, split)
    classes = find_classes(own_root)
    assert len(classes.det) == 120
    boxes, _, _ = build(SETTINGS, classes).head.split
    assert boxes == 5 + 120


def test_a_state_of_an_older_version_ends_in_a_sentence(tmp_path):
    path = tmp_path / "stage1_segmentation.state.pt"
    checkpoint.save(path, {"model": {}, "buffer": {"samples": {}}})
    with pytest.raises(UserError, match=r"state\.pt was written by an older version: delete the files of its run"):
        load_state(path)
