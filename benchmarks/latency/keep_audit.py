"""How far are predicted latencies from measured ones, on detectors that the prediction has not seen?

Keeps an audit as one answer: every detector's latency, accuracies, and where they differ.

    smnas profile --gpu cpu --preset nano --sample 1 --audit 100 --table latency.db --json > audit.json
    python -m benchmarks.latency.keep_audit audit.json --question audit-nano --command "smnas profile ..."
"""

import json
from pathlib import Path

from benchmarks.common.answers import argument_parser, keep_answer

_FACTS = ("device", "backend", "backend_version", "precision", "batch", "threads")


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("audit", type=Path, help="what smnas profile --audit --json wrote")
    parser.add_argument("--question", required=True)
    parser.add_argument("--command", required=True)
    parser.add_argument("--remark", default="", help="conditions that a reader must know")
    args = parser.parse_args()
    document = json.loads(args.audit.read_text())
    audit = document.pop("audit")
    disturbed = sum(bool(row["disturbances"]) for row in audit["detectors"])
    for name, found in audit["accuracy"].items():
        print(
            f"{name}: MAPE {found['mape']:.1%}, {found['within_5']:.0%} within 5%, "
            f"{found['within_10']:.0%} within 10%, Spearman {found['spearman']:.4f}"
        )
    print(f"{audit['inside_interval']:.0%} inside intervals of {audit['level']:.0%}, {disturbed} disturbed")
    keep_answer(
        args.question,
        __doc__,
        {
            "profile_command": args.command,
            "remark": args.remark,
            "disturbed": disturbed,
            **{name: document[name] for name in _FACTS},
            "audit": audit,
        },
        backend=document["backend"],
        precision=document["precision"],
    )


if __name__ == "__main__":
    main()
