"""Training recipes: every setting that affects the result, apart from data, architecture and seed.

Recipes are TOML files in ``recipes/``. Unknown keys are rejected, so that a misspelt setting never trains another
model.
"""

import math
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from profiler.errors import UserError
from smnas.data.augment import Augmentation
from smnas.models.losses import Assignment, BoxLoss, LossOptions

__all__ = ["Recipe", "RecipeError", "load_recipe", "recipe_names"]

_FOLDER = files("smnas.training") / "recipes"


class RecipeError(UserError):
    """An unknown recipe, an unknown key or a value out of its bounds."""


class Recipe(BaseModel):
    """The settings of a training run.

    **Scaling rule**: ``learning_rate`` is stated for ``learning_rate_batch`` images per step. The rate in use,
    :attr:`peak_learning_rate`, scales with the batch size: linearly for SGD (Goyal et al. 2017, arXiv 1706.02677), with
    the square root for AdamW (Malladi et al. 2022, arXiv 2205.10287). So ``batch_size`` can be changed alone.

    Raises:
        RecipeError: from :meth:`with_` and :meth:`parse`; one line that names the key, its rule and the value.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str = Field(min_length=1, description="Name of the recipe in reports and checkpoints.")

    epochs: int = Field(ge=1, description="Passes over the training images.")
    batch_size: int = Field(ge=1, description="Images per step.")

    optimizer: Literal["sgd", "adamw"] = Field(
        default="sgd", description="sgd: with momentum; adamw: Adam with decoupled weight decay."
    )
    learning_rate: float = Field(gt=0, description="Peak learning rate for learning_rate_batch images per step.")
    learning_rate_batch: int = Field(default=16, ge=1, description="Images per step for which learning_rate is stated.")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="sgd: momentum; adamw: its first beta.")
    weight_decay: float = Field(default=1e-4, ge=0, description="L2 penalty on weights, per step, scaled by the rate.")
    decay_norm_and_bias: bool = Field(
        default=False, description="Whether weight_decay also applies to norm parameters and biases (one-dimensional)."
    )

    schedule: Literal["cosine", "step", "auto"] = Field(
        default="cosine",
        description="cosine: half a cosine to final_factor; step: times step_factor at each step_at; auto: constant, "
        "then a decay to final_factor once AP no longer rises, within `epochs`.",
    )
    final_factor: float = Field(default=0.0, ge=0, le=1, description="cosine, auto: last learning rate / peak.")
    step_at: tuple[float, ...] = Field(
        default=(2 / 3, 11 / 12),
        description="step: when to drop, as fractions of the whole run, rising, inside (0, 1).",
    )
    step_factor: float = Field(default=0.1, gt=0, le=1, description="step: factor of each drop.")
    warmup_iterations: int = Field(default=0, ge=0, description="Steps of the linear warm-up.")
    warmup_start: float = Field(default=0.1, gt=0, le=1, description="First learning rate / that of the schedule.")
    warmup_limit: float = Field(
        default=0.25, ge=0, le=1, description="The warm-up takes at most this fraction of the run, however short it is."
    )

    clip_norm: float | None = Field(
        default=None, gt=0, description="Largest L2 norm of all gradients together; larger ones are scaled down."
    )

    ema_decay: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Decay of the moving average of the weights; 0: none.",
    )

    evaluate_every: int = Field(
        default=0, ge=0, description="Epochs between evaluations during training; 0: only at the end."
    )

    flip: float = Field(default=0.5, ge=0, le=1, description="Probability that an image is mirrored left to right.")
    scale_jitter: tuple[float, float] = Field(
        default=(1.0, 1.0), description="An image is resized by a factor drawn between these two; (1, 1) is off."
    )

    mosaic: float = Field(
        default=0.0, ge=0, le=1, description="Probability that an image shares its canvas with three others."
    )
    mosaic_scale: tuple[float, float] = Field(
        default=(0.5, 1.0), description="Range of the scale of a mosaic's images, relative to a letterboxed image."
    )
    mosaic_until: float = Field(
        default=0.8, ge=0, le=1, description="Fraction of the epochs with mosaics; the last ones show whole images."
    )
    color_jitter: float = Field(
        default=0.0, ge=0, le=1, description="Brightness, contrast and saturation vary by this fraction; 0 is off."
    )

    box_loss: BoxLoss = Field(
        default="smooth-l1",
        description="Box loss of anchors and regions: smooth-l1 on the coded offsets, giou or ciou on the boxes.",
    )
    assignment: Assignment = Field(
        default="overlap",
        description="Positive anchors: overlap, IoU above a threshold; atss, above one adapted to each object.",
    )

    amp: Literal["off", "bf16", "fp16"] = Field(
        default="off", description="Mixed precision on a CUDA device; a CPU always trains in float32."
    )
    channels_last: bool = Field(
        default=True, description="Keep images and filters in NHWC order, for GPUs; no effect on speed on a CPU."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        rising = all(a < b for a, b in zip(self.step_at, self.step_at[1:], strict=False))
        if not rising or any(not 0 < fraction < 1 for fraction in self.step_at):
            raise ValueError("step_at must rise strictly inside (0, 1)")
        for name, (low, high) in (("scale_jitter", self.scale_jitter), ("mosaic_scale", self.mosaic_scale)):
            if not 0.1 <= low <= high <= 4:
                raise ValueError(f"{name} must satisfy 0.1 <= low <= high <= 4")
        return self

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate between warm-up and decay, by the scaling rule."""
        ratio = self.batch_size / self.learning_rate_batch
        return self.learning_rate * (math.sqrt(ratio) if self.optimizer == "adamw" else ratio)

    @property
    def augmentation(self) -> Augmentation:
        """The augmentation of training images."""
        names = ("flip", "scale_jitter", "mosaic", "mosaic_scale", "color_jitter")
        return Augmentation(**{name: getattr(self, name) for name in names})

    @property
    def losses(self) -> LossOptions:
        """The losses that are minimized."""
        return LossOptions(box=self.box_loss, assignment=self.assignment)

    @property
    def mosaic_epochs(self) -> int:
        """Number of epochs with mosaics, from the first."""
        return round(self.mosaic_until * self.epochs)

    @classmethod
    def parse(cls, values: dict[str, Any]) -> "Recipe":
        """Validate plain values, as read from TOML or JSON.

        Raises:
            RecipeError: an unknown key or a value out of its bounds.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise RecipeError(_one_line(error)) from None

    def with_(self, **changes: Any) -> "Recipe":
        """Return a validated copy with some settings changed; a value of ``None`` leaves a setting unchanged.

        Raises:
            RecipeError: an unknown key or a value out of its bounds.
        """
        given = {key: value for key, value in changes.items() if value is not None}
        return Recipe.parse({**self.model_dump(), **given})


def _one_line(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    key = ".".join(map(str, first["loc"])) or "settings"
    if first["type"] == "extra_forbidden":
        return f"a recipe has the keys {', '.join(Recipe.model_fields)}, but got {key!r}"
    got = "" if first["type"] == "missing" or first["loc"] == () else f", but got {first['input']!r}"
    return f"recipe {key}: {first['msg']}{got}"


def recipe_names() -> tuple[str, ...]:
    """Names of the built-in recipes, sorted."""
    return tuple(
        sorted(entry.name.removesuffix(".toml") for entry in _FOLDER.iterdir() if entry.name.endswith(".toml"))
    )


def load_recipe(name: str) -> Recipe:
    """Read a built-in recipe by name, or from a ``.toml`` path, after which it is named.

    Raises:
        RecipeError: unknown name (the message lists the known ones), missing file, or a setting that breaks a rule.
    """
    if name.endswith(".toml"):
        return _read(Path(name))
    if name not in recipe_names():
        raise RecipeError(f"a recipe is one of {', '.join(recipe_names())} or a .toml file, but got {name!r}")
    return Recipe.parse({"name": name, **tomllib.loads((_FOLDER / f"{name}.toml").read_text(encoding="utf-8"))})


def _read(path: Path) -> Recipe:
    try:
        return Recipe.parse({"name": path.stem, **tomllib.loads(path.read_text(encoding="utf-8"))})
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(f"a recipe file is readable TOML, but got {path}: {error}") from None
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from None
