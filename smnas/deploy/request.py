"""What a run still needs from its device, as one small JSON file: measured there without the run and the images."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from profiler.atomic import write_atomic
from profiler.backends.base import Backend
from profiler.errors import UserError
from profiler.table.latency_table import LatencyTable, Row, Target, pack_samples
from smnas.data.scene import draw_scene, render
from smnas.deploy.export import canvases
from smnas.deploy.latency import measure_files
from smnas.inference.runtime import RUNTIMES
from smnas.models.layers import NormKind
from smnas.search.ranking.ranking import read_ranking
from smnas.search.study.run_folder import RunFolder
from smnas.search.study.settings import read_settings, run_digest
from smnas.space.architecture import Architecture

__all__ = ["Request", "Wanted", "digest_of", "file_key"]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Wanted(_Strict):
    """A detector to measure: those of its blocks that the table lacks, end to end, and as its exported file."""

    architecture: str
    input: tuple[int, int] = Field(description="width and height, in pixels")
    predicted_ms: float
    measured: float | None = Field(default=None, description="fraction of the prediction that was measured, by time")
    file: str | None = Field(default=None, description="exported file, relative to the request")
    sha256: str | None = Field(default=None, description="of that file")


class Request(_Strict):
    """The detectors of a run to measure, best first, and how."""

    format_version: Literal[1] = 1
    run: str = Field(description="digest of the run's settings")
    device: str
    backend: str
    backend_version: str | None = Field(description="of the table's rows; None: the device was in the machine")
    precision: str
    threads: int = Field(ge=1)
    batch: int = Field(ge=1)
    classes: int = Field(ge=1)
    norm: NormKind
    detectors: tuple[Wanted, ...] = Field(min_length=1)

    @classmethod
    def of_run(cls, run: Path) -> "Request":
        """The front, the finalists, the exported detectors and the baseline of a run folder.

        Raises:
            UserError: no run folder, or nothing is ranked.
        """
        settings, rows = read_settings(run), read_ranking(run).rows
        if not rows:
            raise UserError(f"a run to measure for must have ranked detectors, but {run} has none")
        wanted = []
        for row in rows:
            if not (row.on_front or row.stage == "final" or row.role == "baseline" or row.model):
                continue
            one = Architecture.parse(row.architecture)
            file = row.model if row.model is not None and (run / row.model).is_file() else None
            found = Wanted(
                architecture=row.architecture,
                input=(one.input_width, one.input_height),
                predicted_ms=row.predicted_latency_ms,
                measured=row.predicted_latency_measured,
                file=file,
                sha256=None if file is None else digest_of(run / file),
            )
            wanted.append(found)
        shared = settings.model_dump(include={"device", "backend", "backend_version", "precision", "threads", "batch"})
        # blocks with GroupNorm are the same with and without weight standardization
        norm: NormKind = "bn" if settings.norm == "bn" else "gn-ws"
        classes = len(settings.data.classes)
        return cls(run=run_digest(run), classes=classes, norm=norm, detectors=tuple(wanted), **shared)

    @classmethod
    def read(cls, path: Path) -> "Request":
        """The request of a run folder, or in a file.

        Raises:
            UserError: no such folder or file, a damaged one, or one in the folder of another run.
        """
        if path.is_dir():
            return cls.of_run(path)
        try:
            found = cls.model_validate_json(path.read_bytes())
            for one in found.detectors:
                Architecture.parse(one.architecture)
        except OSError as error:
            raise UserError(f"--for is a run folder or its request, but got {path}: {error.strerror}") from None
        except (ValidationError, UserError) as error:
            why = error
            if isinstance(error, ValidationError):
                first = error.errors()[0]
                why = UserError(f"{'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}")
            raise UserError(f"{path} must be a request as in a run folder, but it is damaged: {why}") from None
        if RunFolder(path.parent).settings.is_file() and (digest := run_digest(path.parent)) != found.run:
            raise UserError(f"{path} must be a request of the run that it lies in, {digest}, but is of {found.run}")
        return found

    def write(self, run: Path) -> None:
        """Write ``request.json`` into a run folder."""
        write_atomic(RunFolder(run).request, json.dumps(self.model_dump(mode="json"), indent=2) + "\n")

    def require_target(self, target: Target, accept_version: str | None) -> None:
        """Check that what is measured here serves the run: a run for a device in its own machine serves any.

        Raises:
            UserError: another device, or another version of the backend, which is not the accepted one.
        """
        if self.backend_version is None:
            return
        if target.device != self.device:
            raise UserError(f"--for must be a run for the device here, {target.device}, but it is for {self.device}")
        here = target.backend_version
        if self.backend_version != here and accept_version not in (here, here.split()[0]):
            raise UserError(
                f"--for must be a run with the {self.backend} that is installed here, {here}, but its table has "
                f"{self.backend_version}: --accept-version {here.split()[0]} measures with the one here"
            )

    def files(self, of: Path) -> dict[str, Path]:
        """The exported files that are there beside the request, or in the run folder, by architecture.

        Raises:
            UserError: one is another run's.
        """
        found = {}
        folder = of if of.is_dir() else of.parent
        for one in self.detectors:
            if one.file is not None and (path := folder / one.file).is_file():
                if (digest := digest_of(path)) != one.sha256:
                    raise UserError(f"{path} must have the SHA-256 {one.sha256} of the request, but has {digest}")
                found[one.architecture] = path
        return found

    def measure_files(
        self,
        files: Mapping[str, Path],
        backend: Backend,
        table: LatencyTable,
        target: Target,
        *,
        seed: int = 0,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> dict[str, float]:
        """Measure exported files on a generated image where the table lacks them; the medians in ms by architecture.

        A backend that does not run such files measures none.
        """
        if self.backend not in RUNTIMES:
            return {}
        digests = {one.architecture: one.sha256 or "" for one in self.detectors}
        keys = {name: file_key(name, digests[name]) for name in files}
        sizes = {one.architecture: one.input for one in self.detectors}
        rng = np.random.default_rng(seed)
        lacking = {
            name: (path, canvases([render(draw_scene(*sizes[name], rng), rng)[0]], *sizes[name]))
            for name, path in files.items()
            if table.lookup(keys[name], target) is None
        }
        if lacking:
            timed = measure_files(
                lacking,
                runtime=self.backend,
                device=backend.device,
                threads=self.threads,
                seed=seed,
                on_progress=on_progress,
            )
            table.add_many(
                Row(
                    keys[name],
                    "exported file",
                    target,
                    kind="whole",
                    median_ms=one.median_ms,
                    low_ms=one.low_ms,
                    high_ms=one.high_ms,
                    n=len(one.rounds_ms),
                    samples=pack_samples(np.array(one.rounds_ms)),
                )
                for name, one in timed.items()
            )
        rows = {name: table.lookup(key, target) for name, key in keys.items()}
        return {name: row.median_ms for name, row in rows.items() if row is not None and row.median_ms is not None}


def file_key(architecture: str, sha256: str) -> str:
    """Key of an exported file's row in a latency table."""
    return f"{architecture}|file={sha256}"


def digest_of(file: Path) -> str:
    """SHA-256 of a file."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
