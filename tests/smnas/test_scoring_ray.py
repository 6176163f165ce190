"""Scores on a Ray cluster of two nodes on this machine; one of them is killed on the way."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from smnas.scoring.base import Score, ScoringFailedError
from smnas.scoring.pool import Job
from smnas.space.architecture import Architecture

ray = pytest.importorskip("ray", reason="needs Ray: pip install 'smnas[ray]'")

ARCHITECTURE = Architecture.parse("basicblock_16_11-21-21-21+fpn_2-5_64+rpn+rcnn_256+128x128")
JOBS = 40


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head and a second raylet, with two CPUs each; their processes find the tests' modules and this project."""
    from ray.cluster_utils import Cluster

    roots = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([*roots, *filter(None, [before])])
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    found.add_node(num_cpus=2)
    try:
        yield found
    finally:
        ray.shutdown()
        found.shutdown()
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


@pytest.mark.filterwarnings("ignore")  # Ray's own, of its processes and sockets
def test_a_lost_node_loses_and_repeats_no_score(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    from ray_scorer import Slow  # type: ignore[import-not-found]

    from smnas.scoring.ray_pool import RayWorkers

    jobs = [Job(n, ARCHITECTURE, n, 1, tmp_path / str(n)) for n in range(JOBS)]
    started: list[int] = []
    outcomes: dict[int, Score | ScoringFailedError] = {}
    with RayWorkers(Slow, cluster.address) as pool:
        assert pool.size == 4
        for job, outcome in pool.score_all(jobs, lambda job: started.append(job.number)):
            assert job.number not in outcomes, "told twice"
            outcomes[job.number] = outcome
            if len(outcomes) == JOBS // 3:
                cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
    assert started == list(range(JOBS))
    assert sorted(outcomes) == list(range(JOBS))
    failed = {n: o for n, o in outcomes.items() if isinstance(o, ScoringFailedError)}
    assert {n: o.reason for n, o in failed.items()} == {13: "the loss is not finite"}
    for number in set(range(JOBS)) - {13}:
        assert outcomes[number].value == number  # type: ignore[union-attr]
    # Each score ended once; only those that ran on the lost node, two at most, were begun again.
    ended = [len((tmp_path / str(n) / "ended").read_text().split()) for n in range(JOBS) if n != 13]
    began = [len((tmp_path / str(n) / "began").read_text().split()) for n in range(JOBS)]
    assert sum(ended) - len(ended) <= 2
    assert sum(began) - len(began) <= 2
