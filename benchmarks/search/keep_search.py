"""Keeps a finished search as one answer file: ranking, training curves, settings, machine, commit and date.

python -m benchmarks.search.keep_search runs/aquarium --question aquarium-nano --command "smnas-search --data ..."
"""

import argparse
import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.common.answers import RESULTS, result_path


def curves(run: Path) -> dict[str, Any]:
    """Loss, AP50 where it was asked for, and the 12 COCO numbers of every training, by folder under ``models/``."""
    found = {}
    for file in sorted((run / "models").glob("*/*/curve.jsonl")):
        epochs = [json.loads(line) for line in file.read_text().splitlines()]
        metrics = file.with_name("metrics.json")
        found[file.parent.relative_to(run / "models").as_posix()] = {
            "loss": [round(epoch["loss"], 4) for epoch in epochs],
            "ap50": {e["epoch"]: round(e["ap50"], 4) for e in epochs if e.get("ap50") is not None},
            "images_per_s": round(epochs[-1]["images_per_s"], 1),
            "metrics": json.loads(metrics.read_text()) if metrics.exists() else None,
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--question", required=True)
    parser.add_argument("--command", required=True)
    parser.add_argument("--remark", default="", help="conditions that a reader must know")
    asked = parser.parse_args()
    settings = json.loads((asked.run / "settings.json").read_text())
    settings["data"]["root"] = os.path.relpath(settings["data"]["root"], RESULTS.parents[1])
    ranking = json.loads((asked.run / "ranking.json").read_text())
    commit = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    answer = {
        "question": asked.question,
        "command": asked.command,
        "remark": asked.remark,
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit,
        "machine": {"device": settings["device"], "cores": os.cpu_count(), "system": platform.system()},
        "settings": settings,
        "recommendation": ranking["recommendation"],
        "notes": ranking["notes"],
        "ranking": ranking["rows"],
        "curves": curves(asked.run),
    }
    path = result_path(
        asked.question,
        settings["device"],
        backend=settings["backend"],
        precision=settings["precision"],
        version=settings["versions"]["torch"],
    )
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(answer, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
