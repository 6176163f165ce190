"""Stages that overlap: order and bounds hold, whatever the threads do."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from profiler.errors import UserError
from smnas.data.image import Decoded
from smnas.data.letterbox import letterbox
from smnas.evaluation.predict import DetectionArrays
from smnas.inference.pipeline import DetectOptions, StageTimes, find_objects, map_ahead, read_ahead


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_results_come_in_the_order_of_the_items(workers: int) -> None:
    def slow_when_even(item: int) -> int:
        time.sleep(0.002 * (item % 2 == 0))
        return item * item

    assert list(map_ahead(slow_when_even, range(30), workers, 5)) == [item * item for item in range(30)]


def test_no_more_than_the_depth_is_taken_ahead() -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        while taken < 100:
            taken += 1
            yield taken

    for number, item in enumerate(map_ahead(lambda item: item, items(), 2, 5), start=1):
        assert item == number
        assert taken <= number + 5
    assert taken == 100


def test_reading_ahead_keeps_order_and_ends_with_its_reader() -> None:
    threads = set()
    ended = threading.Event()

    def items() -> Iterator[int]:
        try:
            for item in range(50):
                threads.add(threading.get_ident())
                yield item
        finally:
            ended.set()

    assert list(read_ahead(items(), 3)) == list(range(50))
    assert threads != {threading.get_ident()}
    reader = read_ahead(items(), 3)
    ended.clear()
    assert next(reader) == 0
    reader.close()
    assert ended.wait(5)


def test_an_error_of_the_function_is_the_caller_s() -> None:
    def fails(item: int) -> int:
        if item == 3:
            raise ValueError("three")
        return item

    got: list[int] = []
    with pytest.raises(ValueError, match="three"):
        got.extend(map_ahead(fails, range(9), 2, 4))
    assert got == [0, 1, 2]


@pytest.mark.parametrize(("batch", "expected"), [(1, [1] * 5), (2, [2, 2, 1]), (8, [5])])
@pytest.mark.parametrize("workers", [0, 3])
def test_batches_change_no_result(
    batch: int, expected: list[int], workers: int, red_box: Any, red_image: Callable[..., Image.Image]
) -> None:
    boxes = [(20 * i, 10 * i, 100 + 20 * i, 60 + 10 * i) for i in range(5)]
    times = StageTimes()
    options = DetectOptions(0.6, batch, workers)

    def draw(box: tuple[int, int, int, int]) -> Decoded:
        return Decoded(red_image(box=box))

    found = find_objects(red_box, boxes, draw, options, times, keep_images=True)
    for one, box in zip(found, boxes, strict=True):
        assert one.source == box
        assert one.detections[0].box == pytest.approx(box, abs=6)
        assert one.image is not None
        assert one.image.size == one.size == (480, 200)
    assert red_box.batches == expected
    assert times.images == 5
    assert min(times.decode_s, times.preprocess_s, times.network_s, times.postprocess_s) > 0
    assert times.ms_per_image()["network"] == pytest.approx(200 * times.network_s)


def test_the_network_gets_the_letterboxed_image(red_box: Any) -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (50, 70, 3), dtype=np.uint8))
    seen: list[NDArray[np.uint8]] = []

    class Spy(type(red_box)):  # type: ignore[misc]
        def __call__(self, images: NDArray[np.uint8]) -> DetectionArrays:
            seen.append(images.copy())
            answer: DetectionArrays = super().__call__(images)
            return answer

    list(find_objects(Spy(), [image, image], Decoded, DetectOptions(batch=2), StageTimes()))
    expected = letterbox(np.asarray(image), 96, 64)[0].transpose(2, 0, 1)
    np.testing.assert_array_equal(seen[0], np.stack([expected, expected]))


def test_the_next_image_is_decoded_while_the_network_runs(red_box: Any, red_image: Callable[..., Image.Image]) -> None:
    decoding = [threading.Event() for _ in range(4)]

    class Waits(type(red_box)):  # type: ignore[misc]
        def __call__(self, images: NDArray[np.uint8]) -> DetectionArrays:
            following = len(self.batches) + 1
            assert following >= len(decoding) or decoding[following].wait(5)
            answer: DetectionArrays = super().__call__(images)
            return answer

    def decode(index: int) -> Decoded:
        decoding[index].set()
        return Decoded(red_image())

    found = list(find_objects(Waits(), range(4), decode, DetectOptions(workers=1), StageTimes()))
    assert [one.error for one in found] == [None] * 4


def test_an_image_that_fails_leaves_the_others_of_its_batch(
    red_box: Any, red_image: Callable[..., Image.Image]
) -> None:
    def decode(index: int) -> Decoded:
        if index in (1, 3):
            raise OSError(f"number {index}")
        return Decoded(red_image())

    found = list(find_objects(red_box, range(5), decode, DetectOptions(0.6, 2), StageTimes()))
    assert [str(one.error) if one.error else None for one in found] == [None, "number 1", None, "number 3", None]
    assert [len(one.detections) for one in found] == [1, 0, 1, 0, 1]
    assert red_box.batches == [1, 1, 1]


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"workers": -1}])
def test_numbers_that_make_no_sense_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UserError, match=r"must hold"):
        DetectOptions(**wrong)


@pytest.mark.parametrize("score", [-0.1, 50.0, float("nan")])
def test_a_score_that_nothing_or_everything_has_is_refused(score: float) -> None:
    with pytest.raises(UserError, match="0 <= score <= 1"):
        DetectOptions(score)
