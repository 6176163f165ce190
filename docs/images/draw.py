"""Draws the figures of the documentation from kept results and a trained detector.

``front.png`` is the Pareto front of a search: its ``ranking.json``, or its kept answer in ``benchmarks/results/``.
``detections.png`` is what a detector finds in four of the images given::

    python docs/images/draw.py front benchmarks/results/search/quickstart-mosaics-*.json
    smnas train --arch inverted_16_1-21-21+fpn_2-5_48+rpn+rcnn_256+160x160 --data quickstart/data --epochs 9 --out model
    python docs/images/draw.py detections model quickstart/data/val/00000[0-3].jpg
"""

import argparse
import json
from pathlib import Path

import matplotlib.pyplot as plt
from PIL import Image

from smnas.inference.detector import Detector
from smnas.inference.draw import draw_detections

FOLDER = Path(__file__).parent
SCALE = 2
"""Factor by which the small images are enlarged, so that labels can be read."""


def draw_front(ranking: Path) -> None:
    """Draw AP against latency of a search's candidates, its front, its baseline and its recommendation."""
    answer = json.loads(ranking.read_text(encoding="utf-8"))
    rows = answer["ranking"]
    figure, axes = plt.subplots(figsize=(7.6, 3.6), dpi=110)
    searched = [row for row in rows if row["stage"] != "final"]
    front = sorted((row for row in searched if row["on_front"]), key=lambda row: row["predicted_latency_ms"])
    low, high = (
        [abs(row[f"predicted_latency_{end}_ms"] - row["predicted_latency_ms"]) for row in searched]
        for end in ("low", "high")
    )
    axes.errorbar(*_points(searched), xerr=[low, high], fmt="o", color="#9aa5b1", ms=4, lw=0.8, label="candidates")
    axes.step(*_points(front), where="post", color="#4f46e5", lw=1.2, zorder=4)
    axes.plot(
        *_points(front), "o", color="#4f46e5", ms=5, zorder=5, label=f"Pareto front after {front[0]['epochs']} epochs"
    )
    for row in rows:
        if row["stage"] != "final":
            continue
        recommended = row["architecture"] == answer["recommendation"]["architecture"]
        name, marker, colour = ("recommended", "*", "#d97706") if recommended else ("baseline", "s", "#111827")
        x, y = row["measured_latency_ms"], row["ap"]
        axes.plot(
            x, y, marker, color=colour, ms=13 if recommended else 7, ls="", label=f"{name}, {row['epochs']} epochs"
        )
        axes.annotate(f"AP {y:.3f}, {x:.2f} ms", (x, y), xytext=(9, -3), textcoords="offset points", fontsize=8)
    axes.set(xlabel="latency in ms", ylabel="AP on the validation images", ylim=(0, None))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    figure.tight_layout()
    figure.savefig(FOLDER / "front.png")


def _points(rows: list[dict[str, float]]) -> tuple[list[float], list[float]]:
    return [row["predicted_latency_ms"] for row in rows], [row["ap"] for row in rows]


def draw_found(model: Path, files: list[Path]) -> None:
    """Draw what a detector finds in images, side by side."""
    images = [Image.open(file).convert("RGB") for file in files]
    large = [image.resize((image.width * SCALE, image.height * SCALE), Image.Resampling.LANCZOS) for image in images]
    drawn = [draw_detections(image, found) for image, found in zip(large, Detector(model)(large), strict=True)]
    gap, height = 8, max(image.height for image in drawn)
    row = Image.new("RGB", (sum(image.width + gap for image in drawn) - gap, height), "white")
    left = 0
    for image in drawn:
        row.paste(image, (left, 0))
        left += image.width + gap
    row.quantize(128).save(FOLDER / "detections.png", optimize=True)


def main() -> None:
    """Read what to draw from the command line."""
    parser = argparse.ArgumentParser(description="Draws the figures of the documentation.")
    kinds = parser.add_subparsers(dest="kind", required=True)
    front = kinds.add_parser("front", help="the Pareto front of a search")
    front.add_argument("ranking", type=Path, help="ranking.json or a kept answer")
    detections = kinds.add_parser("detections", help="what a detector finds")
    detections.add_argument("model", type=Path, help="checkpoint or ONNX file")
    detections.add_argument("images", type=Path, nargs="+")
    given = parser.parse_args()
    if given.kind == "front":
        draw_front(given.ranking)
    else:
        draw_found(given.model, given.images)


if __name__ == "__main__":
    main()
