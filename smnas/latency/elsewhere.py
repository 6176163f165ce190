"""A device that is not in this machine: its rows in a latency table that was filled there."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from profiler.backends import get_backend
from profiler.devices import cpu_device, matching_names, named_sheet
from profiler.errors import BackendUnavailableError, UserError
from profiler.prediction.estimate import ESTIMATE_BACKEND
from profiler.prediction.interpolate import FewRowsError
from profiler.prediction.predict import LatencyModel, prior_of
from profiler.table.latency_table import LatencyTable, Target
from smnas.latency.prediction import LatencyPredictor, calibrate
from smnas.space.architecture import Architecture

__all__ = ["DeviceElsewhere", "TableTooThinError"]

_LEAST_DETECTORS = 2  # with fewer, nothing says how far predictions are off
_LISTED_BLOCKS = 5
_LISTED_DETECTORS = 3


class TableTooThinError(UserError):
    """The table holds too little of a device to predict from; the message says what to measure, and how."""


@dataclass(frozen=True)
class DeviceElsewhere:
    """The user's description of a device elsewhere and of what runs there.

    Attributes:
        table: The latency table from there.
        device: Name of a GPU with a data sheet, or part of a name that the table holds.
        classes: Object classes of the detectors.
        accept_version: Version of the backend whose rows are taken; by default the one installed here.
    """

    table: LatencyTable
    device: str
    backend: str
    precision: str
    threads: int
    classes: int
    accept_version: str | None = None

    def target(self, probe: Sequence[Architecture]) -> Target:
        """Find the table's rows of this device.

        Args:
            probe: Detectors that an error proposes to measure.

        Raises:
            TableTooThinError: There are none.
            UserError: The name is ambiguous, or they are of another version of the backend.
        """
        held = [target for target in self.table.targets() if target.backend != ESTIMATE_BACKEND]
        if not held:
            raise self._thin("measurements", "holds none", LatencyPredictor({}, self.classes), probe)
        names = sorted({target.device for target in held})
        sheet = named_sheet(self.device)
        found = matching_names(sheet, names) if sheet else [n for n in names if self.device.lower() in n.lower()]
        if self.device in found:
            found = [self.device]
        if len(found) > 1:
            raise UserError(f"--device must name one device of {self._file}, but {self.device!r} is {_listed(found)}")
        if not found:
            raise self._thin(self.device, f"holds {_listed(names)}", LatencyPredictor({}, self.classes), probe)
        if found[0] == cpu_device().name:
            raise UserError(
                f"--device must be cpu for this machine's own processor, {found[0]}, but got {self.device!r}"
            )
        held = [target for target in held if target.device == found[0]]
        wanted = {"backend": self.backend, "precision": self.precision, "threads": self.threads, "batch": 1}
        for name, value in wanted.items():
            known = sorted({str(getattr(target, name)) for target in held})
            held = [target for target in held if _alike(getattr(target, name), value)]
            if not held:
                text = f"{name} {value} of {found[0]}"
                raise self._thin(text, f"holds {_listed(known)}", LatencyPredictor({}, self.classes), probe)
        return self._of_version(held)

    def predictor(self, target: Target, probe: Sequence[Architecture], level: float) -> tuple[LatencyPredictor, int]:
        """Calibrate on the whole detectors that the table holds; blocks that it lacks are interpolated.

        Args:
            target: Of the rows.
            probe: Detectors that an error proposes to measure.
            level: Nominal coverage of the intervals.

        Returns:
            The predictor, and the number of whole detectors that it is calibrated on.

        Raises:
            TableTooThinError: Too few blocks to interpolate from, or fewer than two whole detectors.
        """
        rows, model = self.table.current(target), LatencyModel(level=level, prior=prior_of(target.backend))
        plain = LatencyPredictor(rows, self.classes, target.batch, model, interpolates=True)
        try:
            plain.interpolation  # noqa: B018 - a search meets blocks that the table lacks sooner or later
            found = calibrate(plain, plain.measured_detectors())
        except FewRowsError:
            blocks = sum(row.kind == "part" and row.status == "ok" for row in rows.values())
            text = f"enough blocks of {target.device} to interpolate from"
            raise self._thin(text, f"holds {blocks}", plain, probe) from None
        if found.detectors < _LEAST_DETECTORS:
            text = f"{_LEAST_DETECTORS} whole detectors of {target.device} with {self.classes} classes to calibrate on"
            raise self._thin(text, f"holds {found.detectors}", plain, probe)
        return replace(plain, model=found.model), found.detectors

    @property
    def _file(self) -> Path:
        return self.table.path

    def _of_version(self, held: Sequence[Target]) -> Target:
        known = {target.backend_version: target for target in held}
        installed = _installed(self.backend)
        wanted = self.accept_version or installed
        found = [version for version in known if wanted in (version, version.split()[0])]
        if len(found) == 1 or (wanted is None and len(known) == 1):
            return known[(found or list(known))[0]]
        if self.accept_version is not None:
            raise UserError(
                f"--accept-version must be one that {self._file} holds, {_listed(known)}, but got {self.accept_version}"
            )
        raise UserError(
            f"{self._file} must hold rows of the {self.backend} that is installed here, {installed or 'none'}, but "
            f"holds {_listed(known)}: --accept-version {shlex.quote(list(known)[-1])} takes those"
        )

    def _thin(
        self, needed: str, but: str, predictor: LatencyPredictor, probe: Sequence[Architecture]
    ) -> TableTooThinError:
        """What is missing, the most valuable blocks, and the command that measures them and whole detectors."""
        values = predictor.value(probe)
        names = {part.key: part.name for one in probe for part in predictor.parts(one)}
        blocks = list(dict.fromkeys(names[key] for key in sorted(values, key=lambda key: -values[key])))
        worth = {one: sum(values.get(key, 0.0) for key in set(predictor.keys(one))) for one in probe}
        best = sorted(worth, key=lambda one: -worth[one])[:_LISTED_DETECTORS]
        words = ["smnas", "profile", "--device", self.device if named_sheet(self.device) else "local"]
        words += ["--backend", self.backend, "--precision", self.precision, "--threads", str(self.threads)]
        words += ["--classes", str(self.classes), "--end-to-end", "--table", self._file.name]
        words += [word for one in best for word in ("--arch", str(one))]
        first = f", most valuable first {_listed(blocks[:_LISTED_BLOCKS])}" if blocks else ""
        return TableTooThinError(
            f"{self._file} must hold {needed}, but {but}: measure there{first}: {shlex.join(words)}"
        )


def _listed(names: Sequence[object] | dict[str, Target]) -> str:
    return ", ".join(map(str, names))


def _alike(value: object, wanted: object) -> bool:
    return str(value).replace("_", "-") == str(wanted).replace("_", "-")


def _installed(backend: str) -> str | None:
    """Version of a backend on this machine; None if it can not run here."""
    try:
        return get_backend(backend, cpu_device()).version.split()[0]
    except BackendUnavailableError:
        return None
