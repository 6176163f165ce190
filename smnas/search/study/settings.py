"""What a search is run with, as the run folder's ``settings.json`` keeps it."""

import hashlib
import json
import os
from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from profiler.atomic import write_atomic
from profiler.errors import UserError
from smnas.data.contents import contents, difference
from smnas.scoring.base import AP
from smnas.search.study.run_folder import RunFolder, RunFolderError, folder_lock
from smnas.space.preset import Space, load_space

if TYPE_CHECKING:
    from smnas.data.coco import CocoFolder

__all__ = [
    "FORMAT_VERSION",
    "STUDY_NAME",
    "DataFacts",
    "RunFolderError",
    "SearchSettings",
    "StageTrials",
    "data_facts",
    "data_root",
    "flattened",
    "held_out_root",
    "open_data",
    "other_data",
    "prepare_run_folder",
    "read_settings",
    "run_digest",
    "space_of_run",
    "space_settings",
]

FORMAT_VERSION = 1
"""Version of the run folder's layout: ``settings.json``, the study's attributes and ``ranking.json``."""

STUDY_NAME = "smnas"
"""What a study is called in a database of its own."""

_GONE = frozenset({"final_recipe"})
"""Settings that earlier versions wrote and that decided nothing."""

# A resumed search may run with newer software; what data and runs of a warm start contain is compared, not their paths.
_MAY_DIFFER = frozenset({"smnas", "versions", "data", "warm_start", "warm_start_digests", "pretrained"})
# Runs that differ in one of these are no warm start.
_NO_WARM_START = frozenset({"recipe", "epochs", "scorer", "metric", "trains", "pretrained_digest"})

# Strict JSON has neither NaN nor infinities, and a setting that is one is a mistake.
_Share = Annotated[float, Field(ge=0.0, le=1.0)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataFacts(_Strict):
    """Which data set the search trains and scores on: what it contains; ``root`` is where it was last found.

    Runs of earlier versions know the classes and the numbers of images only.
    """

    root: str = Field(description="absolute, or relative to the run folder where it is inside")
    classes: tuple[str, ...] = Field(min_length=1)
    category_ids: tuple[int, ...] = ()
    train_images: int = Field(ge=1)
    val_images: int = Field(ge=1)
    train_boxes: int | None = None
    val_boxes: int | None = None
    train_digest: str | None = None
    val_digest: str | None = None
    test: str | None = Field(default=None, description="folder of the held-out images, as `root`; None: there are none")
    test_images: int | None = None
    test_boxes: int | None = None
    test_digest: str | None = None
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
    backend_version: str | None = Field(
        default=None, description="of the table's rows, where the device is elsewhere; None: it is in this machine"
    )
    latency_confidence: float = Field(
        default=0.9, gt=0, lt=1, description="probability that a predicted latency's interval holds the measured one"
    )
    recipe: dict[str, Any] = Field(description="training recipe of the search; `epochs` is its budget")
    epochs: int = Field(ge=1, description="epochs of every training of the search")
    pretrained: str | None = Field(
        default=None, description="what training starts from: `imagenet`, or a file where it was last found"
    )
    pretrained_digest: str | None = Field(default=None, description="of its content")
    norm: Literal["gn-ws", "gn", "bn"] = Field(default="gn-ws", description="norm of the detectors")
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
    warm_start_digests: tuple[str, ...] = Field(default=(), description="of their settings; empty where they are gone")
    strategy: str = "sm-nas"
    scorer: str
    metric: str = Field(default=AP, description="what the scorer's values are")
    trains: bool = Field(default=True, description="whether the scorer trains; if not, only the final phase does")
    supernet_epochs: int | None = Field(
        default=None, ge=1, description="epochs of weights that candidates share; None: ten times those of a candidate"
    )
    final: str = Field(default="scratch", description="what the final phase trains from, if the scorer does not train")
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
    final_schedule: Literal["recipe", "auto"] = Field(
        default="recipe", description="auto: a final training run ends by itself, after `final_epochs` at most"
    )
    final_seeds: int = Field(default=1, ge=1, description="seeds of the final phase")

    @property
    def expected_final_epochs(self) -> int:
        """Epochs of a final training run; a guess if it ends by itself: four times those of the search."""
        return min(self.final_epochs, 4 * self.epochs) if self.final_schedule == "auto" else self.final_epochs

    @property
    def elsewhere(self) -> bool:
        """Whether the device is not in this machine: latencies are predicted from a table, and none is measured."""
        return self.backend_version is not None

    @property
    def slowest_ms(self) -> float | None:
        """What candidates are trained up to: the latency limit with its tolerance, which intervals make up for.

        None without a limit.
        """
        if self.latency_ms is None or self.elsewhere:
            return self.latency_ms
        return self.latency_ms * self.latency_tolerance


def data_facts(folder: "CocoFolder", run: Path) -> DataFacts:
    """The data set of a search with the run folder ``run``."""
    return DataFacts(
        root=_place(folder.root, run),
        test=None if folder.test is None else _place(folder.test, run),
        drop_bad_boxes=folder.drop_bad_boxes,
        drop_bad_images=folder.drop_bad_images,
        **contents(folder),
    )


def _place(data: Path, run: Path) -> str:
    """Absolute, or relative to the run folder where it is inside."""
    root = Path(os.path.abspath(data))  # noqa: PTH100  a link may lead elsewhere one day
    for inside, place in ((root, Path(os.path.abspath(run))), (root.resolve(), run.resolve())):  # noqa: PTH100
        if inside.is_relative_to(place):
            return str(inside.relative_to(place))
    return str(root)


def held_out_root(run: Path, facts: DataFacts) -> Path | None:
    """Where a run's held-out images were last found; None if it has none."""
    if facts.test is None:
        return None
    return data_root(run, facts) if facts.test == facts.root else run / facts.test


def data_root(run: Path, facts: DataFacts) -> Path:
    """Where a run's data set was last found; generated images are found where the run folder is now."""
    root, generated = run / facts.root, RunFolder(run).data
    return generated if not root.is_dir() and generated.is_dir() else root


def open_data(run: Path, facts: DataFacts) -> "CocoFolder":
    """The data set of the run folder ``run``, from where it was last found.

    Raises:
        DataError: it cannot be read.
        RunFolderError: another one is there now.
    """
    from smnas.data.coco import CocoFolder

    root = data_root(run, facts)
    folder = CocoFolder(
        root,
        drop_bad_boxes=facts.drop_bad_boxes,
        drop_bad_images=facts.drop_bad_images,
        test=held_out_root(run, facts),
    )
    if (other := other_data(facts, data_facts(folder, run))) is not None:
        raise RunFolderError(f"{root} must hold the data set of the search, but it holds {other}")
    return folder


def other_data(before: DataFacts, now: DataFacts) -> str | None:
    """How a data set differs from another one, wherever they lie; None if they are the same."""
    if before.train_digest is None or now.train_digest is None:
        for name in ("drop_bad_boxes", "drop_bad_images"):
            if getattr(before, name) != getattr(now, name):
                return f"{name} = {getattr(now, name)} instead of {getattr(before, name)}"
    return difference(before.model_dump(), now.model_dump())


def run_digest(run: Path) -> str:
    """Digest of a run's settings, whatever the places of the run and its data; empty where they cannot be read."""
    try:
        settings = read_settings(run)
    except RunFolderError:
        return ""
    known = settings.model_dump(mode="json", exclude=set(_MAY_DIFFER), exclude_defaults=True)
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]


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


def settings_of(**values: Any) -> SearchSettings:
    """Settings from their fields; :class:`UserError` in one line for a value that is not possible."""
    try:
        return SearchSettings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = "-".join(map(str, first["loc"])).replace("_", "-")
        raise UserError(f"--{name}: {first['msg'][0].lower()}{first['msg'][1:]}, but got {first['input']!r}") from error


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
                _write(file, settings)
                return False
            before = read_settings(path)
            _compare(before, settings, path)
            # the same data set may have moved, or be known by less
            places = {
                name: getattr(settings, name) for name in ("data", "warm_start", "warm_start_digests", "pretrained")
            }
            if settings.data.train_digest is not None and (now := before.model_copy(update=places)) != before:
                _write(file, now)
            return True
    except OSError as error:
        raise RunFolderError(f"a run folder must be writable, but got {path}: {error.strerror}") from error


def _write(file: Path, settings: SearchSettings) -> None:
    write_atomic(file, json.dumps(settings.model_dump(mode="json"), indent=2) + "\n")


def _compare(old: SearchSettings, new: SearchSettings, path: Path) -> None:
    if (other := other_data(old.data, new.data)) is not None:
        raise RunFolderError(
            f"a search is resumed on the data set that it was begun with, but for {path} "
            f"{path / new.data.root} has {other}; give another --out"
        )
    if (old.data.test is None) != (new.data.test is None):
        was, got = ("none" if one.data.test is None else str(one.data.test_images) for one in (old, new))
        raise RunFolderError(
            f"a search is resumed with the held-out images that it was begun with ({was} in {path}), but got {got}; "
            "give another --out"
        )
    before, now = flattened(old.model_dump(mode="json")), flattened(new.model_dump(mode="json"))
    names = dict.fromkeys((*before, *now))
    different = [
        name
        for name in names
        if name.split(".")[0] not in _MAY_DIFFER and name != "recipe.name" and before.get(name) != now.get(name)
    ]
    if not _same_runs(old, new):
        different.append("warm_start")
    if different:
        # What was typed comes before what follows from it: another strategy may change the recipe.
        name = min(different, key=lambda name: "." in name)
        reusable = old.trains and name.split(".")[0] not in _NO_WARM_START
        hint = f", with --warm-start {path} to begin with its training runs" if reusable else ""
        raise RunFolderError(
            f"a search is resumed with the settings it was begun with ({name} = {before.get(name)!r} in {path}), "
            f"but got {now.get(name)!r}; give another --out{hint}"
        )


def _same_runs(old: SearchSettings, new: SearchSettings) -> bool:
    """Whether both are warm-started from the same runs, which may have moved."""
    before, now = (list(zip_longest(one.warm_start, one.warm_start_digests, fillvalue="")) for one in (old, new))
    return len(before) == len(now) and all(
        was[1] == is_now[1] if was[1] and is_now[1] else was[0] == is_now[0]
        for was, is_now in zip(before, now, strict=True)
    )


def flattened(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    flat: dict[str, Any] = {}
    for name, value in document.items():
        flat |= flattened(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat
