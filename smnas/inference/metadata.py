"""Metadata of a detector file, so that one file is enough to run it correctly."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from profiler.errors import UserError
from smnas.data.letterbox import PAD_VALUE
from smnas.training.checkpoint import CheckpointInfo

__all__ = ["FORMAT_VERSION", "ModelFileError", "ModelMetadata", "Preprocessing"]

FORMAT_VERSION = 1
_PREFIX = "smnas."
_FORMAT = "smnas detector"


class ModelFileError(UserError):
    """A file that is no detector of this software, is damaged, or has another format version."""


@dataclass(frozen=True)
class Preprocessing:
    """Preprocessing from image to detector input; the graph itself normalises pixel values.

    Attributes:
        resize: ``letterbox``: scaled to fit, aspect ratio kept, by antialiased bilinear resampling.
        pad_value: Gray level of the rest of the canvas.
        dtype: Of the input tensor, 0 to 255.
        layout: Order of the input's axes.
    """

    resize: str = "letterbox"
    position: str = "top-left"
    pad_value: int = PAD_VALUE
    channels: str = "RGB"
    dtype: str = "uint8"
    layout: str = "NCHW"


@dataclass(frozen=True)
class ModelMetadata:
    """Description of a detector file.

    Attributes:
        classes: Names, in the order of the 0-based labels.
        category_ids: The data set's id of each class.
        input_width: Of the canvas, in pixels, as is ``input_height``.
        precision: Of backbone, neck and heads: ``fp32``, ``fp16``, ``bf16`` or ``int8``.
        metrics: COCO numbers of the file if measured, else of its checkpoint; empty without either.
        versions: Of the software that wrote the file.
        batch: Images per run of an exported graph; a checkpoint takes any number.
    """

    architecture: str
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    input_width: int
    input_height: int
    precision: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    epochs: int = 0
    seed: int = 0
    versions: Mapping[str, str] = field(default_factory=dict)
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    batch: int = 1

    @classmethod
    def of_checkpoint(
        cls,
        info: CheckpointInfo,
        input_size: tuple[int, int],
        *,
        precision: str = "fp32",
        batch: int = 1,
        versions: Mapping[str, str] | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> "ModelMetadata":
        """Describe a checkpoint; undefined (NaN) metrics are left out."""
        facts = cls(
            architecture=info.architecture,
            classes=info.classes,
            category_ids=info.category_ids,
            input_width=input_size[0],
            input_height=input_size[1],
            precision=precision,
            batch=batch,
            epochs=info.epoch,
            seed=info.seed,
            versions=dict(info.versions if versions is None else versions),
        )
        return facts.with_metrics(info.metrics if metrics is None else metrics)

    def with_metrics(self, metrics: Mapping[str, float]) -> "ModelMetadata":
        """Replace the COCO numbers; undefined (NaN) ones are left out."""
        return replace(self, metrics={name: value for name, value in metrics.items() if math.isfinite(value)})

    def to_properties(self) -> dict[str, str]:
        """Return string properties for an ONNX file: one ``smnas.`` property per field, its value as JSON."""
        fields = {"format": _FORMAT, "format_version": FORMAT_VERSION, **asdict(self)}
        return {_PREFIX + name: json.dumps(value) for name, value in fields.items()}

    @classmethod
    def from_properties(cls, properties: Mapping[str, str], source: str) -> "ModelMetadata":
        """Inverse of :meth:`to_properties`; foreign properties are ignored.

        Raises:
            ModelFileError: The file is not ours, or of another format version.
        """
        rule = "a detector file is one that `smnas export` wrote"
        try:
            values: dict[str, Any] = {
                name.removeprefix(_PREFIX): json.loads(value)
                for name, value in properties.items()
                if name.startswith(_PREFIX)
            }
        except ValueError as error:
            raise ModelFileError(f"{rule}, but the properties of {source} are damaged ({error})") from None
        if values.pop("format", None) != _FORMAT:
            raise ModelFileError(f"{rule}, but {source} is an ONNX file of something else")
        if (version := values.pop("format_version", None)) != FORMAT_VERSION:
            raise ModelFileError(
                f"this version reads detector files of format {FORMAT_VERSION}, but {source} has {version}"
            )
        try:
            return cls(
                **{
                    **values,
                    "classes": tuple(values["classes"]),
                    "category_ids": tuple(values["category_ids"]),
                    "preprocessing": Preprocessing(**values["preprocessing"]),
                }
            )
        except (KeyError, TypeError) as error:
            raise ModelFileError(f"{rule}, but {source} lacks a property or has one too many ({error})") from None
