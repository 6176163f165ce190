"""How long does an annotation file of COCO's size take to open, and how much memory?

Generates a file of 118,000 images and 860,000 boxes with a polygon each (about 300 MB), then opens it in a process of
its own, beside pycocotools in another.

    python -m benchmarks.training.coco_size --out runs/coco-size
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.common.answers import argument_parser, keep_answer

IMAGES, BOXES, CATEGORIES, CORNERS = 118_000, 860_000, 80, 12


def generate(file: Path) -> None:
    rng = np.random.default_rng(0)
    images = [
        {"id": i, "file_name": f"{i:012d}.jpg", "width": 640, "height": 480, "license": 1, "flickr_url": f"none/{i}"}
        for i in range(1, IMAGES + 1)
    ]
    owner = np.sort(rng.integers(1, IMAGES + 1, BOXES)).tolist()
    category = rng.integers(1, CATEGORIES + 1, BOXES).tolist()
    boxes = np.hstack([rng.uniform(0, 400, (BOXES, 2)), rng.uniform(4, 80, (BOXES, 2))]).round(2).tolist()
    polygons = rng.uniform(0, 400, (BOXES, 2 * CORNERS)).round(2).tolist()
    annotations = [
        {"id": k, "image_id": i, "category_id": c, "bbox": b, "area": b[2] * b[3], "iscrowd": 0, "segmentation": [p]}
        for k, (i, c, b, p) in enumerate(zip(owner, category, boxes, polygons, strict=True), start=1)
    ]
    categories = [{"id": c, "name": f"class {c}"} for c in range(1, CATEGORIES + 1)]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))


def open_with(which: str, file: Path) -> None:
    """In a process of its own, because peak memory is a process's."""
    if which == "smnas":
        from smnas.data.annotations import read_annotations

        began, cpu = time.perf_counter(), time.process_time()
        opened = read_annotations(file)
        assert (len(opened.image_ids), len(opened.boxes)) == (IMAGES, BOXES)  # noqa: S101
    else:
        from pycocotools.coco import COCO

        began, cpu = time.perf_counter(), time.process_time()
        with Path(os.devnull).open("w") as nowhere:
            sys.stdout, stdout = nowhere, sys.stdout
            COCO(str(file))
            sys.stdout = stdout
    spent = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}
    # getrusage would count the memory of the process that started this one, too
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(json.dumps({**spent, "peak_mib": int(status["VmHWM"].split()[0]) / 2**10}))


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--open-with", choices=["smnas", "pycocotools"], help="only open the file, as the processes of this script do"
    )
    args = parser.parse_args()
    file = args.out / "annotations" / "instances_train.json"
    if args.open_with:
        open_with(args.open_with, file)
        return
    if not file.exists():
        generate(file)
    runs: dict[str, list[dict[str, float]]] = {"smnas": [], "pycocotools": []}
    for _ in range(3):  # in turns, so that the load of other programs hits both
        for which, results in runs.items():
            command = [
                sys.executable,
                "-m",
                "benchmarks.training.coco_size",
                "--out",
                str(args.out),
                "--open-with",
                which,
            ]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            results.append(json.loads(done.stdout))
            print(which, results[-1], flush=True)
    found = {"images": IMAGES, "boxes": BOXES, "file_mib": file.stat().st_size / 2**20, "runs": runs}
    keep_answer("coco-size", __doc__, found)


if __name__ == "__main__":
    main()
