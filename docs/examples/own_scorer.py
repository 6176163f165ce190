"""A scorer of one's own: among detectors within the latency limit, more multiply-adds are better; nothing is trained.

Worker processes import it, so it lives in a module. ``trains = False``: only the final phase trains.
"""

import smnas
from smnas.latency.workloads import detector_workloads
from smnas.scoring.base import Score


class ManyFlops:
    name, metric = "many-flops", "GFLOPs"
    trains, stops = False, False

    def score(self, architecture, *, seed, epochs, out_dir, on_progress=None):
        return Score(1e-9 * sum(workload.flops for workload in detector_workloads(architecture, 3)))


if __name__ == "__main__":
    run = smnas.search("my-scorer", device="cpu", latency_ms=5, scorer=ManyFlops(), strategy="random", trials=(20, 0))
    print(run.recommendation)
