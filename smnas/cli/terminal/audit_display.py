"""Display of an audit of predicted latencies."""

from typing import Any

from rich.console import Console

from smnas.cli.terminal.console import show_lines, show_table

__all__ = ["show_audit"]

_WORST_SHOWN = 8
_OPERATORS_SHOWN = 5


def show_audit(console: Console, audit: dict[str, Any]) -> None:
    """Print the worst predictions, the overall accuracy beside simpler ones, and the residuals of the worst."""
    detectors = audit["detectors"]
    if detectors:
        show_lines(
            console,
            f"{len(detectors)} detectors that the prediction had not seen ({audit['calibrated_on']} it was fitted on)",
        )
        _show_worst(console, detectors[:_WORST_SHOWN])
        _show_accuracy(console, audit["accuracy"])
        show_lines(
            console,
            f"{audit['inside_interval']:.0%} of the intervals hold the measured latency, "
            f"{audit['level']:.0%} are meant to; roofline by {audit['roof']}",
        )
        splits = audit["inside_interval_over_splits"]
        if splits is not None:
            show_lines(
                console,
                f"fitted on other ones of these detectors, {splits['splits']} choices: {splits['mean']:.0%} "
                f"({splits['low']:.0%} to {splits['high']:.0%})",
            )
        disturbed = sum(bool(row["disturbances"]) for row in detectors)
        if disturbed:
            show_lines(console, f"{disturbed} of them were measured on a disturbed machine, --json says by what")
    if audit["left"]:
        show_lines(console, f"{audit['left']} detectors were not reached in time; the same command resumes")
    for residual in audit["residuals"]:
        _show_residual(console, residual)
    for name, reason in audit["failed"].items():
        show_lines(console, f"failed: {name}: {reason}")


def _show_worst(console: Console, detectors: list[dict[str, Any]]) -> None:
    columns = ["predicted ms", "low", "high", "measured ms", "error", "inside", "architecture"]
    numbers = ("predicted_ms", "low_ms", "high_ms", "measured_ms")
    rows = [
        [*(row[name] for name in numbers), f"{row['error']:+.1%}", row["inside"], row["architecture"]]
        for row in detectors
    ]
    show_table(console, columns, rows)


def _show_accuracy(console: Console, accuracies: dict[str, dict[str, Any]]) -> None:
    rows = []
    for name, found in accuracies.items():
        shares = f"{found['within_5']:.0%}", f"{found['within_10']:.0%}", f"{found['mape']:.1%}"
        ranks = (None if found[rank] is None else f"{found[rank]:.3f}" for rank in ("spearman", "kendall"))
        rows.append([name, *shares, *ranks])
    show_table(console, ["predicted by", "within 5%", "within 10%", "MAPE", "Spearman", "Kendall"], rows)


def _show_residual(console: Console, residual: dict[str, Any]) -> None:
    shares = {
        "outside kernels": residual["overhead_ms"],
        "layout changes": residual["layout_ms"],
        "nodes of only one of them": residual["fusion_ms"],
        "the same nodes": residual["kernels_ms"],
    }
    difference = residual["whole_ms"] - residual["parts_ms"]
    show_lines(
        console,
        f"{residual['architecture']}: {residual['whole_ms']:.3f} ms whole, {residual['parts_ms']:.3f} ms in blocks, in "
        f"ONNX Runtime's own profile; {difference:+.3f} ms are "
        + ", ".join(f"{ms:+.3f} {name}" for name, ms in shares.items()),
    )
    rows = [
        [row["operator"], row["whole_ms"], row["parts_ms"], row["whole_nodes"], row["parts_nodes"]]
        for row in residual["operators"][:_OPERATORS_SHOWN]
    ]
    show_table(console, ["operator", "whole ms", "blocks ms", "nodes whole", "nodes in blocks"], rows)
