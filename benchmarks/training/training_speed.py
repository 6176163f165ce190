"""What do the parts of the recipe that change nothing but speed bring on a CPU?

Channels-last maps, ``torch.compile`` of everything up to the head, and decoded images that stay in memory. One
thread, processor time, in turns.

    python -m benchmarks.training.training_speed --data ../shared/data/aquarium
"""

import argparse
import time
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from statistics import median

import numpy as np
import torch

from benchmarks.common.answers import keep_answer
from benchmarks.common.record import NANO_BASELINE, NUM_CLASSES, SMALL_BASELINE
from benchmarks.training.training_step import some_images
from smnas.data.coco import DEFAULT_CACHE_BYTES, CocoFolder
from smnas.data.loader import TrainLoader
from smnas.models.build import build_detector
from smnas.space.architecture import Architecture

BATCH = 4
NANO_ROUNDS, SMALL_ROUNDS, BATCHES = 25, 5, 20


class Step:
    """Training steps of a detector on the same images."""

    def __init__(self, architecture: str, batch: int, *, channels_last: bool = True, compiled: bool = False) -> None:
        torch.manual_seed(0)
        parsed = Architecture.parse(architecture)
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self._detector = build_detector(parsed, NUM_CLASSES).to(memory_format=self._layout).train()
        if compiled:
            self._detector.features = torch.compile(self._detector.features, dynamic=False)  # type: ignore[method-assign]
        self._batch = some_images(parsed, batch)
        self._optimizer = torch.optim.AdamW(self._detector.parameters(), lr=1e-5, fused=True)

    def __call__(self) -> None:
        images = self._batch.images.contiguous(memory_format=self._layout)
        loss = torch.stack(list(self._detector.loss(images, self._batch.targets).values())).sum()
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._optimizer.step()


def in_turns(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of processor time of one run, in random order in every round; each runs twice before."""
    rng, names = np.random.default_rng(0), list(runs)
    found: dict[str, list[float]] = {name: [] for name in names}
    for run in list(runs.values()) * 2:
        run()
    for _ in range(rounds):
        for index in rng.permutation(len(names)).tolist():
            began = time.process_time()
            runs[names[index]]()
            found[names[index]].append((time.process_time() - began) * 1e3)
    return found


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


def said(times: Mapping[str, list[float]], usual: str) -> dict[str, dict[str, float]]:
    """Medians, and how many times as fast the usual form is as each other one."""
    rows = {}
    for name, values in times.items():
        ratio = median(np.array(values) / np.array(times[usual]))
        rows[name] = {"median_ms": median(values), f"times_that_of_{usual.replace(' ', '_')}": float(ratio)}
        print(f"  {name}: {median(values):.2f} ms, {ratio:.2f} times {usual}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    usual, contiguous, compiled = "channels-last", "contiguous", "compiled"
    step = Step(NANO_BASELINE, BATCH, compiled=True)
    began = time.monotonic()
    step()
    compiling_s = time.monotonic() - began
    print(f"the first compiled step of the nano baseline took {compiling_s:.0f} s on the clock")
    nano = in_turns(
        {
            usual: Step(NANO_BASELINE, BATCH),
            contiguous: Step(NANO_BASELINE, BATCH, channels_last=False),
            compiled: step,
        },
        NANO_ROUNDS,
    )
    print(f"a training step of the nano baseline, {BATCH} images")
    answer: dict[str, object] = {"compiling_s": compiling_s, "nano": said(nano, usual)}
    small = in_turns(
        {usual: Step(SMALL_BASELINE, 1), contiguous: Step(SMALL_BASELINE, 1, channels_last=False)}, SMALL_ROUNDS
    )
    print("a training step of the small baseline, 1 image")
    answer |= {"small": said(small, usual)}
    batches = loading(asked.data)
    print(f"a batch of {BATCH} images for the nano baseline")
    answer |= {"loading": said(batches, "from memory"), "raw_ms": {"nano": nano, "small": small, "loading": batches}}
    keep_answer("training-speed", (__doc__ or "").splitlines()[0], answer)


if __name__ == "__main__":
    main()
