"""What do the parts of the recipe that change only speed bring on a CPU?

Channels-last feature maps, ``torch.compile`` of everything up to the head, and decoded images that stay in memory. One
thread, processor time, in turns.

    python -m benchmarks.training.training_speed --data ../shared/data/aquarium
"""

import time
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.common.answers import argument_parser, keep_answer
from benchmarks.common.detectors import NANO_BASELINE, NUM_CLASSES, SMALL_BASELINE, prepared_batch, training_step
from benchmarks.common.turns import processor_ms, ratios
from smnas.data.coco import DEFAULT_CACHE_BYTES, CocoFolder
from smnas.data.loader import TrainLoader
from smnas.models.build import build_detector
from smnas.space.architecture import Architecture

BATCH = 4
NANO_ROUNDS, SMALL_ROUNDS, BATCHES = 25, 5, 20


def step_of(architecture: str, batch: int, *, channels_last: bool = True, compiled: bool = False) -> Callable[[], None]:
    """A training step of a detector, always on the same images."""
    torch.manual_seed(0)
    parsed = Architecture.parse(architecture)
    layout: Any = torch.channels_last if channels_last else torch.contiguous_format
    detector = build_detector(parsed, NUM_CLASSES).to(memory_format=layout).train()
    if compiled:
        detector.features = torch.compile(detector.features, dynamic=False)  # type: ignore[method-assign]
    return training_step(detector, prepared_batch(parsed, batch), channels_last=channels_last)


def loading(data: Path) -> dict[str, list[float]]:
    """Milliseconds a batch from files, and from memory once every image has been read."""
    width, height = Architecture.parse(NANO_BASELINE).input_width, Architecture.parse(NANO_BASELINE).input_height
    found = {}
    for name, cache_bytes in (("from files", 0), ("from memory", DEFAULT_CACHE_BYTES)):
        split = CocoFolder(data, cache_bytes=cache_bytes).split("train")
        loader = TrainLoader(split, width, height, BATCH, seed=0, workers=0)
        if cache_bytes:
            for index in range(len(split)):
                split.shrunk(index, int(1.5 * width), int(1.5 * height))  # as the loader keeps them
        times = []
        for batch in range(BATCHES):
            began = time.process_time()
            next(islice(loader.epoch(batch), 1))
            times.append((time.process_time() - began) * 1e3)
        found[name] = times
    return found


def report(times: Mapping[str, list[float]], usual: str) -> dict[str, dict[str, float]]:
    """Medians, and how many times as fast the usual form is as each other one."""
    rows = {}
    for name, values in times.items():
        ratio = median(ratios(values, times[usual]))
        rows[name] = {"median_ms": median(values), f"times_that_of_{usual.replace(' ', '_')}": float(ratio)}
        print(f"  {name}: {median(values):.2f} ms, {ratio:.2f} times {usual}")
    return rows


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--data", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    usual, contiguous, compiled = "channels-last", "contiguous", "compiled"
    step = step_of(NANO_BASELINE, BATCH, compiled=True)
    began = time.monotonic()
    step()
    compiling_s = time.monotonic() - began
    print(f"the first compiled step of the nano baseline took {compiling_s:.0f} s on the clock")
    steps = {
        usual: step_of(NANO_BASELINE, BATCH),
        contiguous: step_of(NANO_BASELINE, BATCH, channels_last=False),
        compiled: step,
    }
    nano = processor_ms(steps, NANO_ROUNDS)
    print(f"a training step of the nano baseline, {BATCH} images")
    answer: dict[str, object] = {"compiling_s": compiling_s, "nano": report(nano, usual)}
    large = {usual: step_of(SMALL_BASELINE, 1), contiguous: step_of(SMALL_BASELINE, 1, channels_last=False)}
    small = processor_ms(large, SMALL_ROUNDS)
    print("a training step of the small baseline, 1 image")
    answer |= {"small": report(small, usual)}
    batches = loading(args.data)
    print(f"a batch of {BATCH} images for the nano baseline")
    answer |= {"loading": report(batches, "from memory"), "raw_ms": {"nano": nano, "small": small, "loading": batches}}
    keep_answer("training-speed", __doc__, answer)


if __name__ == "__main__":
    main()
