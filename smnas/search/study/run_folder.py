"""The run folder: begun once, resumed with the settings that it was begun with, held by one process at a time."""

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from smnas.search.study.settings import SETTINGS_FILE, RunFolderError, SearchSettings, read_settings, write_atomically

__all__ = ["folder_lock", "prepare_run_folder"]

# Facts about who wrote the folder; a resumed search may run with newer software.
_MAY_DIFFER = frozenset({"smnas", "versions"})


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
    file = path / SETTINGS_FILE
    if settings.storage is None and (path / "study.db").exists() and not file.exists():
        raise RunFolderError(f"a run folder with study.db must have {SETTINGS_FILE} as well, but {path} has none")
    try:
        path.mkdir(parents=True, exist_ok=True)
        with folder_lock(path):  # of two searches that begin here at the same instant one writes its settings
            if not file.exists():
                write_atomically(file, json.dumps(settings.model_dump(mode="json"), indent=2) + "\n")
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
