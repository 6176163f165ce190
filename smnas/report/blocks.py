"""Latencies of a detector's blocks from the latency table."""

from pathlib import Path

from profiler.errors import UserError
from profiler.table.latency_table import LatencyTable, Target
from smnas.latency.workloads import detector_workloads
from smnas.models.layers import NormKind
from smnas.report.data import BlockLatency
from smnas.report.run_folder import RunFolder
from smnas.search.study.run_folder import RunFolder as RunFiles
from smnas.search.study.settings import SearchSettings
from smnas.space.architecture import Architecture

__all__ = ["block_latencies", "blocks_of_run"]


def block_latencies(
    table: LatencyTable, target: Target, architecture: Architecture, classes: int, norm: NormKind = "gn-ws"
) -> tuple[BlockLatency, ...]:
    """Blocks of a detector with their measured latencies, as they run; :class:`UserError` if the table lacks one."""
    known = table.current(target)
    blocks = []
    for part in detector_workloads(architecture, classes, target.batch, norm=norm):
        row = known.get(part.key)
        if row is None or row.median_ms is None:
            raise UserError(
                f"every block of a detector with {classes} classes must be in the table, but {part.name} of "
                f"{architecture} has no latency: --classes N says for how many the table was made"
            )
        blocks.append(BlockLatency(part.name, row.median_ms))
    return tuple(blocks)


def blocks_of_run(run: RunFolder, architecture: str, table: Path | None = None) -> tuple[BlockLatency, ...]:
    """Blocks of a run's detector with their latencies.

    Args:
        run: Gives device and settings of the measurement.
        architecture: Of the detector.
        table: Latency table; by default the run folder's own.

    Raises:
        UserError: No table, no rows for the run's device, or a missing block.
    """
    settings = run.settings
    with LatencyTable(table or RunFiles(run.path).table, create=False) as rows:
        target = _target(settings, rows)
        classes = len(settings.data.classes)
        return block_latencies(
            rows, target, Architecture.parse(architecture), classes, "bn" if settings.norm == "bn" else "gn-ws"
        )


def _target(settings: SearchSettings, table: LatencyTable) -> Target:
    """The run's target; the last of several backend versions."""
    wanted = (settings.device, settings.backend, settings.precision, settings.batch, settings.threads)
    found = [t for t in table.targets() if (t.device, t.backend, t.precision, t.batch, t.threads) == wanted]
    if settings.elsewhere:
        found = [target for target in found if target.backend_version == settings.backend_version]
    if not found:
        raise UserError(
            f"the latency table must hold the run's device, but {table.path} has nothing of {settings.device}"
        )
    return found[-1]
