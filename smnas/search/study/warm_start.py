"""Runs of other searches that a search begins with: what was trained under the same conditions is not trained again."""

import shutil
import stat
from dataclasses import replace
from pathlib import Path

from smnas.search.study.candidate import Candidate, in_search
from smnas.search.study.optuna_study import read_candidates
from smnas.search.study.settings import RunFolderError, SearchSettings, other_data, read_settings
from smnas.space.architecture import Architecture
from smnas.space.preset import Space

__all__ = ["copy_training", "warm_candidates"]

# AP compares where these and the data set are equal. The device may differ: latency is predicted again.
_ALIKE = ("recipe", "epochs", "scorer", "pretrained_digest", "norm")


def warm_candidates(settings: SearchSettings, space: Space) -> tuple[tuple[Candidate, Path], ...]:
    """The whole runs of the runs in ``settings.warm_start`` that this search could have made, each with its run.

    They cost this search no epochs (``start_epoch`` is their end) and have no latency yet. Of an architecture that
    several runs have, the first one counts.

    Raises:
        RunFolderError: a run can not be read, or was made with other data, another recipe, budget or scorer.
    """
    found: dict[Architecture, tuple[Candidate, Path]] = {}
    baseline = space.baseline_architecture
    for folder in map(Path, settings.warm_start):
        _require_alike(folder, settings)
        candidates = read_candidates(folder, read_settings(folder))
        if not candidates:
            raise RunFolderError(f"a search is warm-started from runs with trials, but {folder} has none")
        for c in candidates:
            known = c.architecture == baseline or space.contains(c.architecture)
            if in_search(c) and known:
                found.setdefault(c.architecture, (_draft(c, c.architecture == baseline), folder))
    return tuple(found.values())


def _draft(c: Candidate, is_baseline: bool) -> Candidate:
    return replace(
        c,
        stage="baseline" if is_baseline else "warm",
        origin="baseline" if is_baseline else "warm-start",
        parent=None,
        generation=None,
        start_epoch=c.epochs,
    )


def _require_alike(folder: Path, settings: SearchSettings) -> None:
    other = read_settings(folder)
    data = other_data(other.data, settings.data)
    different = [] if data is None else [f"data: {data}"]
    different += [name for name in _ALIKE if _condition(other, name) != _condition(settings, name)]
    if different:
        raise RunFolderError(
            f"a search is warm-started from runs with the same data, {', '.join(_ALIKE)}, but {folder} differs in "
            f"{different[0]}"
        )


def _condition(settings: SearchSettings, name: str) -> object:
    """A setting without the name of its recipe, as of a file."""
    value = getattr(settings, name)
    return {**value, "name": None} if name == "recipe" else value


def copy_training(source: Path, target: Path) -> None:
    """Copy a training's folder where there is one and it is not there yet; a reader never finds half of it."""
    if target.exists() or not source.is_dir():
        return
    unfinished = target.with_name(target.name + ".copying")
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(source, unfinished)
    for path in (unfinished, *unfinished.rglob("*")):  # a copy of what is read-only would be, too
        path.chmod(path.stat().st_mode | stat.S_IWUSR)
    unfinished.rename(target)
