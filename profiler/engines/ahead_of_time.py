"""Ahead-of-time engines: workloads exported, typed and built in parallel processes, without their GPU.

Engines on disk are not built again, so a killed build resumes. Failures are stored with their reason.
"""

import hashlib
import importlib
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from profiler.child_process import end_with_parent
from profiler.engines.engine_graph import engine_graphs
from profiler.engines.store import EngineRequest, EngineStore, Manifest
from profiler.engines.tensorrt import (
    BuiltEngine,
    build_engine,
    compute_capabilities,
    import_tensorrt,
    needs_convolutions,
)
from profiler.errors import UserError, named_line
from profiler.precision import PRECISIONS
from profiler.workload import Workload, random_inputs

__all__ = ["AheadReport", "build_ahead"]

_GROUP = 16
"""Workloads exported together, which is much faster than singly."""


@dataclass(frozen=True)
class AheadReport:
    """Summary of a build; a workload counts once per compute capability.

    Attributes:
        cached: engines and failures found on disk.
        failed: manifests without an engine, from now and before.
    """

    built: int
    cached: int
    failed: tuple[Manifest, ...]


class _Job(NamedTuple):
    name: str
    key: str
    request: EngineRequest
    model: bytes


def build_ahead(
    workloads: Iterable[Workload],
    store: EngineStore,
    capabilities: Sequence[str],
    *,
    backend: str = "tensorrt_rtx",
    precision: str = "fp32",
    workers: int = 1,
    on_done: Callable[[Manifest], None] | None = None,
) -> AheadReport:
    """Build an engine of every workload for every compute capability.

    Args:
        workloads: with real weights; consumed as the builders keep up.
        store: searched first, filled after every engine.
        capabilities: such as ``8.9``; one engine each, so that failures are independent.
        backend: ``tensorrt_rtx``, or another module of this interface that builds for given capabilities.
        precision: ``fp32``, ``fp16``, ``bf16`` or ``int8``.
        workers: builder processes.
        on_done: called after every engine or failure, those on disk included.

    Raises:
        BackendUnavailableError: the module is not installed.
        UserError: unknown precision, or a capability that the module does not build for.
    """
    trt = import_tensorrt(backend)
    known = compute_capabilities(trt)
    unknown = [capability for capability in capabilities if capability not in known]
    if unknown or not capabilities:
        raise UserError(
            f"{backend} builds ahead of time for compute capabilities {', '.join(known) or '(none)'}, but got "
            f"{', '.join(unknown) or 'none'}"
        )
    if precision not in PRECISIONS:
        raise UserError(f"a precision is one of {', '.join(PRECISIONS)}, but got {precision!r}")
    counts = {"built": 0, "cached": 0}
    failed: list[Manifest] = []

    def note(kind: str, manifest: Manifest) -> None:
        if manifest.status == "failed":
            failed.append(manifest)
        if manifest.status == "built" or kind == "cached":
            counts[kind] += 1
        if on_done is not None:
            on_done(manifest)

    def to_build() -> Iterator[_Job]:
        for workload, capability, graph in _graphs(workloads, precision, capabilities):
            # without a graph, the key stands for it
            model, reason = (workload.key.encode(), named_line(graph)) if isinstance(graph, Exception) else (graph, "")
            request = EngineRequest(
                backend, str(trt.__version__), capability, precision, hashlib.sha256(model).hexdigest()
            )
            found = store.find(request)
            if found is not None:
                note("cached", found)
            elif reason:
                note("built", store.add_failure(request, reason, name=workload.name, key=workload.key))
            else:
                yield _Job(workload.name, workload.key, request, model)

    for job, outcome in _built(to_build(), workers):
        if isinstance(outcome, BuiltEngine):
            facts = outcome.facts()
            note("built", store.add(job.request, outcome.content, name=job.name, key=job.key, facts=facts))
        else:
            note("built", store.add_failure(job.request, outcome, name=job.name, key=job.key))
    return AheadReport(counts["built"], counts["cached"], tuple(failed))


def _graphs(
    workloads: Iterable[Workload], precision: str, capabilities: Sequence[str]
) -> Iterator[tuple[Workload, str, bytes | Exception]]:
    """Yield every workload for every capability, with its typed graph or the error instead."""
    convolutions = {capability: needs_convolutions(precision, capability) for capability in capabilities}
    rest = iter(workloads)
    while group := list(islice(rest, _GROUP)):
        items = [(workload.module, random_inputs(workload.inputs)) for workload in group]
        made = {form: engine_graphs(items, precision, convolutions=form) for form in set(convolutions.values())}
        for number, workload in enumerate(group):
            for capability, form in convolutions.items():
                yield workload, capability, made[form][number]


def _built(jobs: Iterator[_Job], workers: int) -> Iterator[tuple[_Job, BuiltEngine | str]]:
    """Yield jobs as they finish, with an engine or a reason; exports stay only slightly ahead of the builders."""
    running: dict[Future[BuiltEngine | str], _Job] = {}
    pool = _pool(workers)
    try:
        while True:
            suspects = []
            for job in islice(jobs, 2 * workers - len(running)):
                try:
                    running[pool.submit(_build, job)] = job
                except BrokenProcessPool:
                    suspects.append(job)
            if not running and not suspects:
                return
            done = wait(running, return_when=FIRST_COMPLETED).done if running else set()
            for future in done:
                job = running.pop(future)
                try:
                    yield job, future.result()
                except BrokenProcessPool:
                    suspects.append(job)
            if suspects:
                # A builder died and broke the pool: each job runs alone to find the culprit.
                suspects += running.values()
                running.clear()
                pool.shutdown()
                for job in suspects:
                    yield job, _build_alone(job)
                pool = _pool(workers)
    finally:
        pool.shutdown(cancel_futures=True)


def _build_alone(job: _Job) -> BuiltEngine | str:
    with _pool(1) as pool:
        try:
            return pool.submit(_build, job).result()
        except BrokenProcessPool:
            return "the process that built it died"


def _pool(workers: int) -> ProcessPoolExecutor:
    # spawned: a forked process would inherit the locks of torch's threads
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=end_with_parent)


def _build(job: _Job) -> BuiltEngine | str:
    request = job.request
    try:
        trt = importlib.import_module(request.backend)
        return build_engine(trt, job.model, request.precision, [request.device])
    except Exception as error:  # noqa: BLE001 - any error of the builder is this graph's result
        return named_line(error)
