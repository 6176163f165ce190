"""Does any broken annotation file, image or clip end in a traceback, a hang or a silent skip?

Changes good annotation files (values, keys, structure, bytes), image files of eight formats and clips of six
containers at random, and opens them as the commands do. Each one is read, refused in one line that names the file, or
read in part with the count of what was left out. Batches run in processes of their own, so that a decoder's crash or a
hang is counted and the next input follows.

    nice python -m benchmarks.reliability.broken_inputs --keep
"""

import copy
import io
import json
import multiprocessing
import queue
import random
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from benchmarks.common.answers import argument_parser, keep_answer
from profiler.errors import UserError
from smnas.data.coco import CocoFolder
from smnas.data.image import load_rgb
from smnas.inference.video import open_video

BATCH, LIMIT_S = 250, 60.0
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 7, 0.5, 1e308, -0.0, float("nan"), float("inf"), 2**70, 10**400, "", "a", "7",
    "\ud800", "a\0", "../a.png", "a.png", [], [1], [1, 2, 3, 4], [0, 0, 0, 0], ["1", "2", "3", "4"], {}, {"id": 1},
    [[]], [{}], [None],
]  # fmt: skip
KEYS = ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "file_name", "width", "height", "name", "x")
IMAGES = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "PPM")
CLIPS = {".mp4": "mpeg4", ".avi": "mpeg4", ".mkv": "libx264", ".ts": "mpeg2video", ".mjpeg": "mjpeg", ".flv": "flv"}
FRAMES = 12


def document() -> dict[str, Any]:
    images = [{"id": n, "file_name": f"{n}.png", "width": 40, "height": 30} for n in range(4)]
    boxes = [
        {
            "id": n,
            "image_id": n % 4,
            "category_id": 1 + n % 2,
            "bbox": [n, 2, 9.5, 8],
            "area": 76,
            "iscrowd": n % 5 == 4,
        }
        for n in range(8)
    ]
    names = [{"id": 1, "name": "fish", "supercategory": "sea"}, {"id": 2, "name": "crab", "supercategory": "sea"}]
    return {"images": images, "annotations": boxes, "categories": names, "info": {}}


def change(value: Any, rng: random.Random) -> Any:
    """One random change somewhere in a JSON value."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.05:
        return copy.deepcopy(rng.choice(VALUES))
    place = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
    kind = rng.random()
    if kind < 0.08:
        del value[place]
    elif kind < 0.14 and isinstance(value, list):
        value.append(copy.deepcopy(value[place]))
    elif kind < 0.2 and isinstance(value, dict):
        value[rng.choice(KEYS)] = value.pop(place)
    else:
        value[place] = change(value[place], rng)
    return value


def spoil(content: bytes, rng: random.Random) -> bytes:
    """Some bytes changed, most of them in the header; cut off, doubled or emptied now and then."""
    data = bytearray(content)
    reach = rng.choice([64, 400, len(data)])
    for _ in range(rng.choice([1, 2, 5, 20])):
        data[rng.randrange(min(reach, len(data)))] = rng.randrange(256)
    kind = rng.random()
    if kind < 0.2:
        del data[rng.randrange(len(data)) :]
    elif kind < 0.25:
        start = rng.randrange(len(data))
        del data[start : start + rng.randrange(1, 200)]
    elif kind < 0.28:
        data.extend(bytes(data))
    return bytes(data)


def annotation(folder: Path, rng: random.Random) -> str:
    """One broken annotation file; what came of it."""
    if not (folder / "annotations").is_dir():
        (folder / "annotations").mkdir()
        for split in ("train", "val"):
            (folder / split).mkdir()
            for number in range(4):
                Image.new("RGB", (40, 30)).save(folder / split / f"{number}.png")
        (folder / "annotations" / "instances_val.json").write_text(json.dumps(document()))
    changed = document()
    for _ in range(rng.choice([1, 1, 2, 4])):
        changed = change(changed, rng)
    content = json.dumps(changed).encode()
    if rng.random() < 0.2:
        content = spoil(content, rng)
    file = folder / "annotations" / "instances_train.json"
    file.write_bytes(content)
    drop = rng.random() < 0.5
    opened = CocoFolder(folder, drop_bad_boxes=drop)
    listed = json.loads(content)
    train = opened.split("train")
    kept = sum(len(train.boxes(index)[0]) for index in range(len(train)))
    if len(train) != len(listed["images"]) or kept + train.dropped != len(listed["annotations"]):
        return "silent skip"
    return "read in part, counted" if train.dropped else "read"


def image(folder: Path, rng: random.Random) -> str:
    kind = rng.choice(IMAGES)
    pixels = np.random.default_rng(rng.randrange(9)).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, kind)
    file = folder / f"image.{kind.lower()}"
    file.write_bytes(spoil(content.getvalue(), rng))
    loaded = load_rgb(file)
    return "read" if loaded.ndim == 3 and loaded.dtype == np.uint8 else "silent skip"


def clip(folder: Path, rng: random.Random) -> str:
    suffix = rng.choice(list(CLIPS))
    whole, file = folder / f"whole{suffix}", folder / f"broken{suffix}"
    if not whole.exists():
        write_clip(whole, CLIPS[suffix])
    file.write_bytes(spoil(whole.read_bytes(), rng))
    with open_video(file) as reader:
        read = sum(frame.decoded().image.width > 0 for frame in reader)
        if reader.problem is not None:
            return "read in part, counted"
    if not read:
        return "refused"  # detection says that there is not one frame
    return "read" if read >= FRAMES else "fewer frames, as the file now says"


def write_clip(path: Path, codec: str) -> None:
    with av.open(str(path), "w") as container:
        track: Any = container.add_stream(codec, rate=25)
        track.width, track.height, track.pix_fmt = 64, 48, "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for index in range(FRAMES):
            frame: Any = av.VideoFrame.from_image(Image.new("RGB", (64, 48), (20 * index, 90, 30)))  # type: ignore[no-untyped-call]
            frame.pts, frame.time_base = index, Fraction(1, 25)
            container.mux(track.encode(frame))
        container.mux(track.encode(None))


KINDS: dict[str, Callable[[Path, random.Random], str]] = {"annotations": annotation, "images": image, "clips": clip}


def work(kind: str, start: int, stop: int, seed: int, found: "multiprocessing.Queue[tuple[int, str]]") -> None:
    """Try inputs ``start`` to ``stop`` in this process."""
    warnings.simplefilter("ignore")
    av.logging.set_level(av.logging.PANIC)
    with tempfile.TemporaryDirectory(prefix="smnas-broken-") as name:
        for number in range(start, stop):
            folder = Path(name) / kind
            folder.mkdir(exist_ok=True)
            try:
                outcome = KINDS[kind](folder, random.Random(f"{kind} {seed} {number}"))
            except (UserError, MemoryError) as error:
                line = str(error)
                outcome = "refused" if "\n" not in line and (str(folder) in line or not line) else f"bad line: {line!r}"
            except Exception:  # noqa: BLE001  what is looked for
                outcome = f"traceback: {traceback.format_exc(limit=-2)}"
            found.put((number, outcome))


def outcomes(kind: str, count: int, seed: int) -> Counter[str]:
    """What came of ``count`` inputs."""
    context = multiprocessing.get_context("spawn")
    counted: Counter[str] = Counter()
    number = 0
    while number < count:
        stop = min(count, number - number % BATCH + BATCH)
        found = context.Queue()
        process = context.Process(target=work, args=(kind, number, stop, seed, found))
        process.start()
        while number < stop:
            try:
                number, outcome = found.get(timeout=LIMIT_S if process.is_alive() else 1.0)
            except queue.Empty:
                outcome = "hang" if process.is_alive() else f"crash, exit code {process.exitcode}"
                counted[outcome] += 1
                print(f"{kind} {number}: {outcome}", flush=True)
                number += 1
                break
            if ":" in outcome:
                print(f"{kind} {number}: {outcome}", flush=True)
            counted[outcome.partition(":")[0]] += 1
            number += 1
        process.kill()
        process.join()
    return counted


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--annotations", type=int, default=10_000)
    parser.add_argument("--images", type=int, default=1_000)
    parser.add_argument("--clips", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", action="store_true", help="keep the answer")
    args = parser.parse_args()
    began = time.monotonic()
    found = {kind: outcomes(kind, getattr(args, kind), args.seed) for kind in KINDS}
    rows = [{"inputs": kind, "tried": counts.total(), **dict(counts.most_common())} for kind, counts in found.items()]
    for row in rows:
        print(json.dumps(row))
    bad = ("traceback", "bad line", "silent skip", "hang", "crash")
    failed = sum(number for counts in found.values() for outcome, number in counts.items() if outcome.startswith(bad))
    if args.keep:
        seconds = round(time.monotonic() - began, 1)
        keep_answer("broken-inputs", __doc__, {"seed": args.seed, "failed": failed, "seconds": seconds, "inputs": rows})
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
