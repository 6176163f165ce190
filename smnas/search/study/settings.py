"""What a search is run with, as the run folder's ``settings.json`` keeps it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from profiler.atomic import write_whole
from smnas.scoring.base import AP
from smnas.search.study.run_folder import RunFolder, RunFolderError, folder_lock
from smnas.space.preset import Space, load_space

__all__ = [
    "FORMAT_VERSION",
    "STUDY_NAME",
    "DataFacts",
    "RunFolderError",
    "SearchSettings",
    "StageTrials",
    "prepare_run_folder",
    "read_settings",
    "space_of_run",
    "space_settings",
]

FORMAT_VERSION = 1
"""Version of the run folder's layout: ``settings.json``, the study's attributes and ``ranking.json``."""

STUDY_NAME = "smnas"
"""What a study is called in a database of its own."""

_GONE = frozenset({"final_recipe"})
"""Settings that earlier versions wrote and that decided nothing."""

# Facts about who wrote the folder; a resumed search may run with newer software.
_MAY_DIFFER = frozenset({"smnas", "versions"})

# Strict JSON has neither NaN nor infinities, and a setting that is one is a mistake.
_Share = Annotated[float, Field(ge=0.0, le=1.0)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataFacts(_Strict):
    """Which data set the search trains and scores on."""

    root: str
    classes: tuple[str, ...] = Field(min_length=1)
    train_images: int = Field(ge=1)
    val_images: int = Field(ge=1)
    drop_bad_boxes: bool = Field(default=False, description="boxes without a size or outside their image left out")
    drop_bad_images: bool = Field(default=False, description="images that can not be read as annotated left out")


class StageTrials(_Strict):
    """How many candidates each stage trains; failed and pruned ones do not count."""

    structural: int = Field(ge=0)
    modular: int = Field(ge=0)


class SearchSettings(_Strict):
    """Everything that decides a search's outcome, and the facts that its report needs."""

    format_version: int = FORMAT_VERSION
    smnas: str = Field(description="version of this software that began the run")
    preset: str = Field(description="the space's preset, or the name of its file")
    space: dict[str, Any] | None = Field(default=None, description="the space itself, where it came from a file")
    data: DataFacts
    device: str
    backend: str
    precision: str
    batch: int = Field(default=1, ge=1)
    threads: int = Field(default=1, ge=1)
    recipe: dict[str, Any] = Field(description="training recipe of the search; `epochs` is its budget")
    epochs: int = Field(ge=1, description="epochs of every training of the search")
    seed: int = Field(default=0, ge=0)
    latency_ms: float | None = Field(default=None, gt=0, description="latency limit of the recommended detector")
    latency_tolerance: float = Field(
        default=1.05,
        ge=1.0,
        description="candidates are trained up to latency_ms times this, as predictions are not exact",
    )
    max_parameters: int | None = Field(default=None, ge=1, description="larger detectors are not trained")
    storage: str | None = Field(default=None, description="URL of the study's database; None: study.db in the folder")
    study: str = Field(default=STUDY_NAME, min_length=1, description="the study's name in the database")
    warm_start: tuple[str, ...] = Field(
        default=(), description="run folders whose training runs this search begins with"
    )
    strategy: str = "sm-nas"
    scorer: str
    metric: str = Field(default=AP, description="what the scorer's values are")
    trains: bool = Field(default=True, description="whether the scorer trains; if not, only the final phase does")
    prior: str | None = Field(default=None, description="score without training that orders candidates before it")
    prior_draws: int = Field(default=4, ge=1, description="proposals of which the prior's best one is looked at")
    versions: dict[str, str] = Field(default_factory=dict, description="of Python, torch and the backend")
    trials: StageTrials
    generation: int = Field(default=1, ge=1, description="candidates proposed, and trained, at once")
    training_threads: int = Field(
        default=1, ge=1, description="CPU threads of a training; another number adds up in another order"
    )
    random_share: _Share = 0.2
    parents: int = Field(default=4, ge=1, description="Pareto points of stage 1 that stage 2 starts from, at most")
    partial_order: bool = Field(default=True, description="skip candidates that the partial order says are beaten")
    partial_order_margin: float = Field(
        default=0.01, ge=0.0, description="AP by which a candidate must be beaten to be skipped"
    )
    top: int = Field(default=3, ge=1, description="candidates that the final phase trains again")
    final_epochs: int = Field(default=0, ge=0, description="epochs of the final phase; 0 leaves it out")
    final_seeds: int = Field(default=1, ge=1, description="seeds of the final phase")


def space_settings(preset: str, space: Space) -> dict[str, Any]:
    """The settings ``preset`` and ``space`` of a search in ``space``, which :func:`space_of_run` reads."""
    own = preset.endswith(".toml")
    return {
        "preset": Path(preset).name if own else preset,
        "space": space.model_dump(mode="json", exclude_defaults=True) if own else None,
    }


def space_of_run(preset: str, before: SearchSettings | None) -> Space:
    """The space of ``preset``, or the one that a run was begun with, where that came from a file which is gone.

    Raises:
        SpaceError: no such preset or file, or one that breaks a rule.
    """
    file = Path(preset)
    if before is not None and before.space is not None and file.name == before.preset and not file.exists():
        return Space.model_validate(before.space)
    return load_space(preset)


def read_settings(path: Path) -> SearchSettings:
    """The settings of the run folder ``path``.

    Raises:
        RunFolderError: there are none, they are not JSON, or of another format version.
    """
    file = RunFolder(path).settings
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunFolderError(f"a run folder holds {file.name}, but {path} has none") from error
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{file} must be a JSON document, but reading it failed: {error}") from error
    version = document.get("format_version") if isinstance(document, dict) else None
    if version != FORMAT_VERSION:
        raise RunFolderError(
            f"this version works on run folders of format {FORMAT_VERSION}, but {file} has format {version}; "
            "give another --out"
        )
    document = {name: value for name, value in document.items() if name not in _GONE}
    if "metric" not in document:
        from smnas.scoring.by_name import SCORERS  # loads torch, which only folders of earlier versions need

        scorer = SCORERS.get(document.get("scorer", ""))
        document |= {"metric": scorer.metric, "trains": scorer.trains} if scorer else {}
    try:
        return SearchSettings.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise RunFolderError(f"{file}: {where}: {first['msg']}") from error


def prepare_run_folder(path: Path, settings: SearchSettings) -> bool:
    """Make ``path`` a run folder of these settings, or check that it already is one.

    Returns:
        Whether an earlier run is resumed.

    Raises:
        RunFolderError: another process holds the folder, or it is of another format version or was begun with other
            settings; one line that names the first difference.
    """
    if path.exists() and not path.is_dir():
        raise RunFolderError(f"a run folder must be a folder, but got the file {path}")
    folder = RunFolder(path)
    file = folder.settings
    if settings.storage is None and folder.study.exists() and not file.exists():
        raise RunFolderError(
            f"a run folder with {folder.study.name} must have {file.name} as well, but {path} has none"
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
        with folder_lock(path):  # of two searches that begin here at the same instant one writes its settings
            if not file.exists():
                write_whole(file, json.dumps(settings.model_dump(mode="json"), indent=2) + "\n")
                return False
            _compare(read_settings(path), settings, path)
            return True
    except OSError as error:
        raise RunFolderError(f"a run folder must be writable, but got {path}: {error.strerror}") from error


def _compare(old: SearchSettings, new: SearchSettings, path: Path) -> None:
    before, now = _flat(old.model_dump(mode="json")), _flat(new.model_dump(mode="json"))
    # What was typed comes before what follows from it: another strategy may change the recipe.
    for name in sorted(dict.fromkeys((*before, *now)), key=lambda name: "." in name):
        if name.split(".")[0] not in _MAY_DIFFER and before.get(name) != now.get(name):
            raise RunFolderError(
                f"a search is resumed with the settings it was begun with ({name} = {before.get(name)!r} in {path}), "
                f"but got {now.get(name)!r}; give another --out"
            )


def _flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in document.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
