"""Scores and whole searches on a Ray cluster of two nodes on this machine, which lose a node or all of them.

The gate runs these tests in an environment of their own that has Ray (``make test-ray``); elsewhere they are skipped.
"""

import importlib
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from smnas.scoring.base import Score, ScoringFailedError
from smnas.scoring.workers.processes import InProcess, Job, ScorerPool
from smnas.search.context import SearchContext
from smnas.search.progress import SearchEvent
from smnas.search.run import run_search
from smnas.search.study.candidate import Candidate
from smnas.search.study.optuna_study import read_candidates
from smnas.search.study.run_folder import RunFolder
from smnas.search.study.settings import RunFolderError, read_settings
from smnas.space.architecture import Architecture
from smnas.space.preset import load_space

ray = pytest.importorskip("ray", reason="needs Ray: make test-ray")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # Ray's own, of its processes and sockets
]

STAND_INS = next(folder for folder in Path(__file__).parents if folder.name == "tests") / "stand_ins"
NANO = load_space("nano")
ARCHITECTURE = Architecture.parse("basicblock_16_11-21-21-21+fpn_2-5_64+rpn+rcnn_256+128x128")
JOBS = 40


@pytest.fixture(scope="module", autouse=True)
def paths() -> Iterator[None]:
    """The cluster's processes, and this one, find the tests' modules and this project."""
    roots = [str(STAND_INS), str(STAND_INS.parents[1])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([*roots, *filter(None, [os.environ.get("PYTHONPATH")])]))
        for root in reversed(roots):
            patch.syspath_prepend(root)
        yield


def start_cluster() -> Any:
    """A head and a second raylet, with two CPUs each."""
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    found.add_node(num_cpus=2)
    return found


@pytest.fixture(scope="module")
def head(paths: None) -> Iterator[Any]:
    found = start_cluster()
    try:
        yield found
    finally:
        ray.shutdown()
        found.shutdown()


@pytest.fixture
def cluster(head: Any) -> Any:
    """A head and a second node: a new one where the test before has lost it."""
    if not head.worker_nodes:
        head.add_node(num_cpus=2)
    return head


def lose_a_node(cluster: Any) -> None:
    cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)


def test_a_lost_node_loses_and_repeats_no_score(cluster: Any, tmp_path: Path) -> None:
    from ray_scorer import Slow  # type: ignore[import-not-found]

    from smnas.scoring.workers.ray import RayWorkers

    jobs = [Job(n, ARCHITECTURE, n, 1, tmp_path / str(n)) for n in range(JOBS)]
    started: list[int] = []
    outcomes: dict[int, Score | ScoringFailedError] = {}
    with RayWorkers(Slow, cluster.address) as pool:
        assert pool.size == 4
        for job, outcome in pool.score_all(jobs, lambda job: started.append(job.number)):
            assert job.number not in outcomes, "told twice"
            outcomes[job.number] = outcome
            if len(outcomes) == JOBS // 3:
                lose_a_node(cluster)
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


def search(folder: Path, pool: ScorerPool, on_event: Any = None) -> None:
    stub, script = (importlib.import_module(name) for name in ("search_stub", "search_ray_script"))
    context = SearchContext(folder, script.settings(), NANO, stub.StubLatency())
    run_search(context, scorers=pool, complexity=stub.complexity, on_event=on_event)


def trials(folder: Path) -> list[Candidate]:
    return list(read_candidates(folder, read_settings(folder)))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, paths: None) -> list[Candidate]:
    """The same search in one process."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    stub: ModuleType = importlib.import_module("search_stub")
    search(folder, InProcess(stub.StubScorer()))
    return trials(folder)


def check_trainings(folder: Path, at_most_again: int) -> None:
    """Every training ended once, but for those that were running on what was lost."""
    trained = [c for c in trials(folder) if c.state == "complete"]
    assert len(trained) == 41
    assert set(Counter((c.architecture, c.seed, c.epochs) for c in trained).values()) == {1}
    files = [RunFolder(folder).training(c.architecture, c.seed, c.epochs) / "ended" for c in trained]
    assert sum(len(file.read_text().split()) for file in files) <= len(trained) + at_most_again


def test_a_search_that_loses_a_node_finds_what_one_process_finds(
    cluster: Any, tmp_path: Path, alone: list[Candidate]
) -> None:
    from ray_scorer import Searched  # type: ignore[import-not-found]

    from smnas.scoring.workers.ray import RayWorkers

    def tell(event: SearchEvent) -> None:
        if event.state == "complete" and event.trained == 13:
            lose_a_node(cluster)

    with RayWorkers(Searched, cluster.address) as pool:
        search(tmp_path / "run", pool, tell)
    assert trials(tmp_path / "run") == alone
    check_trainings(tmp_path / "run", at_most_again=2)


def test_a_restarted_head_loses_no_finished_trial(tmp_path: Path, alone: list[Candidate]) -> None:
    folder, cluster = tmp_path / "run", start_cluster()  # of its own: no other test can use it afterwards
    command = [sys.executable, str(STAND_INS / "search_ray_script.py"), str(folder), cluster.address]
    soon = {**os.environ, "RAY_gcs_rpc_server_reconnect_timeout_s": "10"}  # it waits a minute for a lost head otherwise
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=soon)
    try:
        until = time.monotonic() + 600
        while len(finished(folder)) < 13:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < until
            time.sleep(0.2)
        for node in (*cluster.worker_nodes, cluster.head_node):
            node.kill_all_processes(check_alive=False, allow_graceful=False)
        _, errors = process.communicate(timeout=600)
    finally:
        process.kill()
    assert process.returncode != 0, errors
    before = finished(folder)
    assert 13 <= len(before) < len(alone)

    again = start_cluster()
    try:
        done = subprocess.run([*command[:-1], again.address], capture_output=True, text=True, timeout=900, check=False)
    finally:
        again.shutdown()
    assert done.returncode == 0, done.stderr
    assert {number: finished(folder)[number] for number in before} == before
    assert trials(folder) == alone
    check_trainings(folder, at_most_again=4)


def test_what_a_scorer_prepares_is_made_once_and_read_by_every_process(cluster: Any, tmp_path: Path) -> None:
    import preparing_scorer as preparing  # type: ignore[import-not-found]

    from smnas.scoring.workers.ray import RayWorkers

    stub = importlib.import_module("search_stub")
    folder, settings = tmp_path / "run", preparing.settings()
    context = SearchContext(folder, settings, NANO, stub.StubLatency())
    with RayWorkers(preparing.on_cluster, cluster.address) as pool:
        run_search(context, scorers=pool, trainers=InProcess(stub.StubScorer()), complexity=stub.complexity)
    assert (folder / "shared.txt").read_text().split() == [str(step) for step in range(preparing.STEPS)]
    scored = [c for c in read_candidates(folder, settings) if c.stage != "final" and c.state == "complete"]
    assert [c.score for c in scored] == [stub.load_of(c.architecture) for c in scored]


def finished(folder: Path) -> dict[int, Candidate]:
    try:
        return {c.number: c for c in trials(folder) if c.state != "running"}
    except RunFolderError:
        return {}  # the search has not begun its study yet
