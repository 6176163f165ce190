"""Resolve ``--model``: a checkpoint, an ONNX file, an engine, or a folder that a command wrote."""

import importlib.util
from contextlib import suppress
from pathlib import Path
from typing import Literal

from profiler.errors import UserError
from smnas.search.study.run_folder import RunFolder

__all__ = ["model_file", "usual_runtime"]

_CHECKPOINT = "checkpoint.pt"  # as in smnas.training.checkpoint, which imports torch


def model_file(path: Path, prefer: Literal["model", "checkpoint"] = "model") -> Path:
    """Return the file to load; of a search, ``prefer`` picks the exported file, if any, or the checkpoint.

    Raises:
        UserError: the path is missing, or the folder is neither a finished search nor a training run.
    """
    if not path.exists():
        raise UserError(f"a model must be an existing file or run folder, but got {path}")
    if not path.is_dir():
        return path
    if (checkpoint := path / _CHECKPOINT).is_file():
        return checkpoint
    if not RunFolder(path).ranking.is_file():
        raise UserError(
            f"a model's folder is that of a finished search or of a training, but {path} holds neither ranking.json "
            f"nor {_CHECKPOINT}"
        )
    from smnas.search.ranking.ranking import read_ranking

    ranking = read_ranking(path)
    if ranking.recommendation is None:
        raise UserError(
            f"a model can be the detector that a run folder recommends, but {path} recommends none: "
            f"give a file of {RunFolder(path).models}"
        )
    row = next(row for row in ranking.rows if row.architecture == ranking.recommendation.architecture)
    file = row.checkpoint if prefer == "checkpoint" else row.model or row.checkpoint
    if file is None:
        raise UserError(f"a ranked detector has a file, but {path} names none for {row.architecture}")
    return path / file


def usual_runtime(path: Path) -> str | None:
    """Return OpenVINO for the exported file of a search in OpenVINO, where installed; else the default, ``None``."""
    if not (RunFolder(path).ranking.is_file() and importlib.util.find_spec("openvino")):
        return None
    from smnas.search.study.settings import read_settings

    with suppress(UserError):  # a ranking alone is enough to open its file
        if read_settings(path).backend == "openvino" and model_file(path).suffix == ".onnx":
            return "openvino"
    return None
