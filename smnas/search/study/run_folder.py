"""The run folder: the name of every file in it, and its lock, which one process holds at a time."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from profiler.errors import UserError

__all__ = ["RunFolder", "RunFolderError", "folder_lock"]


class RunFolderError(UserError):
    """A run folder of another version, of other settings, in use, or one that can not be read."""


class RunFolder:
    """Where a search keeps its files.

    Attributes:
        path: The folder itself; a relative one gives relative names.
        settings: What the search was begun with.
        study: The trials (SQLite), unless the study is in a database elsewhere.
        table: The latency table, unless another one was given.
        ranking: The ranked detectors and the recommendation.
        csv: The same rows for a spreadsheet.
        report: The page.
        request: What a device elsewhere is to measure.
        models: A folder for every trained architecture.
        zero_shot: What a search without training has found.
        data: Generated images, where no data was given.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = path = Path(path)
        self.settings = path / "settings.json"
        self.study = path / "study.db"
        self.table = path / "latency.db"
        self.ranking = path / "ranking.json"
        self.csv = path / "ranking.csv"
        self.report = path / "report.html"
        self.request = path / "request.json"
        self.models = path / "models"
        self.zero_shot = path / "zero-shot.json"
        self.data = path / "data"

    def training(self, architecture: object, seed: int, epochs: int) -> Path:
        """The folder of one training run."""
        return self.models / str(architecture) / f"seed-{seed}-epochs-{epochs}"

    def model(self, architecture: object) -> Path:
        """The exported file of one architecture."""
        return self.models / str(architecture) / "model.onnx"


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold a run folder.

    Raises:
        RunFolderError: another process holds it.
    """
    with (folder / ".lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel lets go of it when the process dies
        except BlockingIOError as error:
            raise RunFolderError(
                f"one search at a time works in a run folder, but another process holds {folder}"
            ) from error
        yield
