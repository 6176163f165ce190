"""Batches are a function of the seed and the epoch, and what is kept in memory stays under its limit."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from smnas.data.augment import Augmentation
from smnas.data.coco import CocoFolder, DataError, DetectionDataset
from smnas.data.letterbox import PAD_VALUE, letterbox
from smnas.data.loader import Batch, TrainLoader, eval_batches

COUNT = 11
JITTER = Augmentation(flip=0.5, scale_jitter=(0.6, 1.6))


def write(root: Path) -> Path:
    """Eleven images of growing size; image k has a red box, and a crowd box of the other class."""
    rng = np.random.default_rng(0)
    (root / "annotations").mkdir(parents=True)
    images, annotations = [], []
    for split in ("train", "val"):
        (root / split).mkdir()
    for index in range(COUNT):
        width, height = 40 + 8 * index, 60
        pixels = rng.integers(0, 90, (height, width, 3), dtype=np.uint8)
        pixels[10:40, 5:35] = (255, 0, 0)
        for split in ("train", "val"):
            Image.fromarray(pixels).save(root / split / f"{index}.png")
        images.append({"id": 100 + index, "file_name": f"{index}.png", "width": width, "height": height})
        common = {"image_id": 100 + index}
        annotations += [
            {**common, "id": 2 * index, "category_id": 8, "bbox": [5, 10, 30, 30]},
            {**common, "id": 2 * index + 1, "category_id": 3, "bbox": [0, 0, 40, 60], "iscrowd": 1},
        ]
    categories = [{"id": 3, "name": "mass"}, {"id": 8, "name": "red"}]
    content = json.dumps({"images": images, "annotations": annotations, "categories": categories})
    for split in ("train", "val"):
        (root / "annotations" / f"instances_{split}.json").write_text(content)
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("loader") / "data")


@pytest.fixture
def train(root: Path) -> DetectionDataset:
    return CocoFolder(root).split("train")


MOSAIC = Augmentation(flip=0.5, scale_jitter=(0.6, 1.6), mosaic=0.7)


def loader(
    dataset: DetectionDataset,
    batch_size: int = 4,
    seed: int = 3,
    workers: int = 0,
    augmentation: Augmentation = JITTER,
    mosaic_epochs: int | None = None,
) -> TrainLoader:
    return TrainLoader(
        dataset, 64, 48, batch_size, seed, augmentation=augmentation, mosaic_epochs=mosaic_epochs, workers=workers
    )


def same(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a.images, b.images)
        and all(
            torch.equal(x.boxes, y.boxes) and torch.equal(x.labels, y.labels)
            for x, y in zip(a.targets, b.targets, strict=True)
        )
        for a, b in zip(first, second, strict=True)
    )


def test_batches_have_the_promised_types(train: DetectionDataset) -> None:
    for batch in loader(train).epoch(0):
        assert batch.images.shape == (4, 3, 48, 64)
        assert batch.images.dtype == torch.uint8
        assert batch.images.is_contiguous()
        for target in batch.targets:
            assert target.boxes.shape == (len(target.labels), 4)
            assert (target.boxes.dtype, target.labels.dtype) == (torch.float32, torch.int64)
            assert (target.boxes[:, :2] < target.boxes[:, 2:]).all()
            assert (target.labels == 1).all()  # crowds are left out


@pytest.mark.parametrize("augmentation", [JITTER, MOSAIC])
def test_targets_lie_on_what_they_name(train: DetectionDataset, augmentation: Augmentation) -> None:
    seen = 0
    for epoch in range(3):
        for batch in loader(train, augmentation=augmentation).epoch(epoch):
            for image, target in zip(batch.images.float(), batch.targets, strict=True):
                for x1, y1, x2, y2 in target.boxes.round().int().tolist():
                    red, green, _ = image[:, y1 + 1 : y2 - 1, x1 + 1 : x2 - 1].mean(dim=(1, 2))
                    assert red > 220
                    assert green < 30
                    seen += 1
    assert seen > 20


@pytest.mark.parametrize("workers", [1, 3])
def test_threads_and_history_change_nothing(root: Path, train: DetectionDataset, workers: int) -> None:
    alone = list(loader(train, augmentation=MOSAIC).epoch(2))
    threaded = loader(CocoFolder(root, cache_bytes=0).split("train"), workers=workers, augmentation=MOSAIC)
    for number in (0, 1):
        list(threaded.epoch(number))
    assert same(alone, list(threaded.epoch(2)))


def test_a_mosaic_holds_the_objects_of_several_images(train: DetectionDataset) -> None:
    """Every image has one object, so more on a canvas are those of its neighbours."""
    batches = loader(train, augmentation=MOSAIC, mosaic_epochs=2)
    counts = [[len(t.labels) for batch in batches.epoch(epoch) for t in batch.targets] for epoch in range(3)]
    assert max(counts[0]) > 1
    assert max(counts[1]) > 1
    assert max(counts[2]) == 1
    # a late epoch is that of a loader without mosaics, number by number
    assert same(list(batches.epoch(2)), list(loader(train).epoch(2)))


def test_epochs_and_seeds_differ(train: DetectionDataset) -> None:
    first = list(loader(train).epoch(0))
    assert not same(first, list(loader(train).epoch(1)))
    assert not same(first, list(loader(train, seed=4).epoch(0)))


def test_the_batch_size_changes_the_grouping_and_not_the_images(train: DetectionDataset) -> None:
    by_four = torch.cat([batch.images for batch in loader(train, 4).epoch(1)])
    by_one = torch.cat([batch.images for batch in loader(train, 1).epoch(1)])
    assert len(by_one) == COUNT
    assert torch.equal(by_four, by_one[: len(by_four)])


@pytest.mark.parametrize(("batch_size", "sizes"), [(4, [4, 4]), (11, [11]), (16, [11]), (1, [1] * 11)])
def test_the_last_partial_batch_is_dropped_unless_it_is_the_only_one(
    train: DetectionDataset, batch_size: int, sizes: list[int]
) -> None:
    batches = loader(train, batch_size)
    assert [len(batch.images) for batch in batches.epoch(0)] == sizes
    assert len(batches) == len(sizes)


def test_an_epoch_may_be_left_half_way(train: DetectionDataset) -> None:
    batches = loader(train, 1, workers=2).epoch(0)
    next(batches)
    batches.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_named(tmp_path: Path, workers: int) -> None:
    root = write(tmp_path / "data")
    victim = root / "train" / "6.png"
    victim.write_bytes(victim.read_bytes()[:200])
    train = CocoFolder(root).split("train")
    with pytest.raises(DataError, match=r"6\.png"):
        list(loader(train, 1, workers=workers).epoch(0))


def test_memory_holds_what_fits_and_makes_room_for_another_size(root: Path) -> None:
    one = 30 * 20 * 3
    train = CocoFolder(root, cache_bytes=3 * one).split("train")
    first = [train.shrunk(0, 20, 30)[0] for _ in range(2)]
    assert first[0] is first[1]
    assert not first[0].flags.writeable
    kept = [index for index in range(COUNT) if train.shrunk(index, 20, 30)[0] is train.shrunk(index, 20, 30)[0]]
    assert 0 in kept
    assert 2 < len(kept) < COUNT
    assert sum(train.shrunk(index, 20, 30)[0].nbytes for index in kept) <= 3 * one
    other = train.shrunk(10, 40, 40)[0]
    assert train.shrunk(10, 40, 40)[0] is other
    assert train.shrunk(0, 20, 30)[0] is not first[0]


def test_evaluation_batches_are_letterboxed_images_in_file_order(train: DetectionDataset) -> None:
    for _ in range(2):  # from disk, then from memory
        batches = list(eval_batches(train, 64, 100, 4))
        assert [len(batch.images) for batch in batches] == [4, 4, 3]
        assert sum((batch.image_ids for batch in batches), ()) == train.image_ids
        index = 0
        for batch in batches:
            assert batch.images.shape[1:] == (3, 100, 64)
            assert batch.images.flags.c_contiguous
            for image, scale, size in zip(batch.images, batch.scales, batch.sizes, strict=True):
                canvas, expected = letterbox(train.image(index), 64, 100)  # the first ones are enlarged
                assert scale == expected
                assert size == (40 + 8 * index, 60)
                np.testing.assert_array_equal(image.transpose(1, 2, 0), canvas)
                index += 1


def test_evaluation_pads_with_the_letterbox_gray(train: DetectionDataset) -> None:
    batch = next(eval_batches(train, 64, 64, 16))
    assert (batch.images[10, :, 40:] == PAD_VALUE).all()


def test_settings_out_of_range_are_refused(train: DetectionDataset) -> None:
    for changed in ({"batch_size": 0}, {"seed": -1}, {"workers": -1}):
        with pytest.raises(ValueError, match="must hold"):
            loader(train, **changed)
    with pytest.raises(ValueError, match="must hold"):
        next(eval_batches(train, 64, 64, 0))


def test_real_images_come_in_batches(aquarium_mini: Path) -> None:
    train = CocoFolder(aquarium_mini).split("train")
    batches = list(TrainLoader(train, 96, 96, 8, 0).epoch(0))
    assert [len(batch.targets) for batch in batches] == [8, 8, 8, 8]
    assert sum(len(target.boxes) for batch in batches for target in batch.targets) > 110
