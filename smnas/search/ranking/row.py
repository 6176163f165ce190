"""One row of the ranking."""

from dataclasses import dataclass
from typing import Literal

from smnas.search.study.candidate import StageName

__all__ = ["RankingRow"]


@dataclass(frozen=True)
class RankingRow:
    """One detector of the ranking; the field names are the files' columns.

    Attributes:
        rank: 1 is recommended, if any is.
        stage: Stage that trained the AP: ``final`` if trained again.
        on_front: Not dominated in (AP, predicted latency) by an architecture of the same training budget.
        ap: Mean over the seeds, in 0..1: of the held-out images where ``validation_ap`` stands beside it.
        ap_std: Sample standard deviation over the seeds; None with one seed.
        seeds: In the order of ``ap_per_seed``.
        predicted_latency_ms: From the latency table, with its interval.
        measured_latency_ms: Of the exported file, with its interval; None until exported. For a device elsewhere, end
            to end there, of the exported file or of the same detector with fresh weights; None until measured.
        flops: Floating-point operations per image.
        checkpoint: Weights of the seed with the best AP, relative to the run folder.
        model: Exported file, relative to the run folder; None until exported.
        search_ap: AP in the search, if the final phase trained it again.
        predicted_latency_measured: Fraction of the predicted latency whose blocks were measured, by time; the rest is
            interpolated. None where the device was in the machine.
        stop_reason: Why its training runs ended, where each ended by itself, after ``epochs`` at most.
        validation_ap: Mean AP on the validation images, if ``ap`` is of held-out ones; else None.
    """

    rank: int
    architecture: str
    id: str
    role: Literal["baseline", "candidate"]
    stage: StageName
    on_front: bool
    ap: float
    ap_std: float | None
    ap_per_seed: tuple[float, ...]
    ap50: float | None
    seeds: tuple[int, ...]
    epochs: int
    predicted_latency_ms: float
    predicted_latency_low_ms: float | None
    predicted_latency_high_ms: float | None
    measured_latency_ms: float | None = None
    measured_latency_low_ms: float | None = None
    measured_latency_high_ms: float | None = None
    parameters: int | None = None
    flops: int | None = None
    checkpoint: str | None = None
    model: str | None = None
    exported_ap: float | None = None
    exported_ap50: float | None = None
    search_ap: float | None = None
    predicted_latency_measured: float | None = None
    validation_ap: float | None = None
    stop_reason: str | None = None
