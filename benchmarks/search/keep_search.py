"""What does a whole search find? Keeps a finished one as an answer: ranking, training curves and settings.

python -m benchmarks.search.keep_search runs/aquarium --question aquarium-nano --command "smnas-search --data ..."
"""

import json
import os
from pathlib import Path
from typing import Any

from benchmarks.common.answers import ROOT, argument_parser, keep_answer
from benchmarks.common.machine import provenance


def curves(run: Path) -> dict[str, Any]:
    """Loss, AP50 where evaluated, and the 12 COCO numbers of every training, by folder under ``models/``."""
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
    parser = argument_parser(__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--question", required=True)
    parser.add_argument("--command", required=True)
    parser.add_argument("--remark", default="", help="conditions that a reader must know")
    args = parser.parse_args()
    settings = json.loads((args.run / "settings.json").read_text())
    settings["data"]["root"] = os.path.relpath(settings["data"]["root"], ROOT.parent)
    ranking = json.loads((args.run / "ranking.json").read_text())
    here = provenance()
    keep_answer(
        args.question,
        __doc__,
        {
            "command": args.command,
            "remark": args.remark,
            "machine": here["machine"] | {"device": settings["device"]},
            "versions": here["versions"] | settings["versions"],
            "settings": settings,
            "recommendation": ranking["recommendation"],
            "notes": ranking["notes"],
            "ranking": ranking["rows"],
            "curves": curves(args.run),
        },
        backend=settings["backend"],
        precision=settings["precision"],
    )


if __name__ == "__main__":
    main()
