"""What a training run is: every number that decides its result, apart from the data, the architecture and the seed.

Recipes are data, one TOML file each in ``recipes/``; :func:`load_recipe` reads one by name and :meth:`Recipe.with_`
gives a changed copy. Unknown keys are refused, so that a misspelt setting never trains a different model in silence.
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
    """One training run's settings.

    **The learning rate's scale rule**: ``learning_rate`` is stated for ``learning_rate_batch`` images a step, and
    :attr:`peak_learning_rate`, the rate that trains, follows the images in a step: in proportion for SGD (Goyal et al.
    2017, arXiv 1706.02677), with their square root for AdamW (Malladi et al. 2022, arXiv 2205.10287). Changing
    ``batch_size`` alone therefore keeps the recipe balanced.

    Raises:
        RecipeError: from :meth:`with_` and :meth:`parse`; one line that names the key, its rule and the value.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str = Field(min_length=1, description="What the recipe is called in reports and checkpoints.")

    epochs: int = Field(ge=1, description="Passes over the training images.")
    batch_size: int = Field(ge=1, description="Images in a step.")

    optimizer: Literal["sgd", "adamw"] = Field(
        default="sgd", description="sgd: with momentum; adamw: Adam with decoupled weight decay."
    )
    learning_rate: float = Field(gt=0, description="Peak learning rate for learning_rate_batch images a step.")
    learning_rate_batch: int = Field(default=16, ge=1, description="Images a step that learning_rate is stated for.")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="sgd: momentum; adamw: its first beta.")
    weight_decay: float = Field(default=1e-4, ge=0, description="L2 penalty on weights, per step, scaled by the rate.")
    decay_norm_and_bias: bool = Field(
        default=False, description="Whether weight_decay also pulls on norm parameters and biases (one-dimensional)."
    )

    schedule: Literal["cosine", "step"] = Field(
        default="cosine", description="cosine: half a cosine to final_factor; step: times step_factor at each step_at."
    )
    final_factor: float = Field(default=0.0, ge=0, le=1, description="cosine: last learning rate / peak.")
    step_at: tuple[float, ...] = Field(
        default=(2 / 3, 11 / 12), description="step: when to drop, as shares of the whole run, rising, inside (0, 1)."
    )
    step_factor: float = Field(default=0.1, gt=0, le=1, description="step: what each drop multiplies the rate by.")
    warmup_iterations: int = Field(default=0, ge=0, description="Steps of the linear warm-up.")
    warmup_start: float = Field(default=0.1, gt=0, le=1, description="First learning rate / what the schedule says.")
    warmup_limit: float = Field(
        default=0.25, ge=0, le=1, description="The warm-up takes at most this share of the run, however short it is."
    )

    clip_norm: float | None = Field(
        default=None, gt=0, description="Gradients are scaled to at most this L2 norm over all parameters."
    )

    ema_decay: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Decay of the moving average of the weights that is kept; 0: none.",
    )

    evaluate_every: int = Field(
        default=0, ge=0, description="Epochs between evaluations on the way, for the curve; 0: only at the end."
    )

    flip: float = Field(default=0.5, ge=0, le=1, description="Probability that an image is mirrored left to right.")
    scale_jitter: tuple[float, float] = Field(
        default=(1.0, 1.0), description="An image is resized by a factor drawn between these two; (1, 1) is off."
    )

    mosaic: float = Field(
        default=0.0, ge=0, le=1, description="Probability that an image shares its canvas with three others."
    )
    mosaic_scale: tuple[float, float] = Field(
        default=(0.5, 1.0), description="Range of a mosaic's images' scale, as a share of a letterboxed image's."
    )
    mosaic_until: float = Field(
        default=0.8, ge=0, le=1, description="Share of the epochs with mosaics; the last ones show whole images."
    )
    color_jitter: float = Field(
        default=0.0, ge=0, le=1, description="Brightness, contrast and saturation vary by this share; 0 is off."
    )

    box_loss: BoxLoss = Field(
        default="smooth-l1",
        description="Of anchors and regions: smooth-l1 on their coded offsets, giou or ciou on the boxes themselves.",
    )
    assignment: Assignment = Field(
        default="overlap",
        description="Which anchors are positive: overlap, above a threshold; atss, above one adapted to each object.",
    )

    amp: Literal["off", "bf16", "fp16"] = Field(
        default="off", description="Mixed precision on a CUDA device; a CPU always trains in float32."
    )
    channels_last: bool = Field(
        default=True, description="Keep images and filters in NHWC order: for GPUs; on a CPU it changes nothing."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        rising = all(a < b for a, b in zip(self.step_at, self.step_at[1:], strict=False))
        if not rising or any(not 0 < share < 1 for share in self.step_at):
            raise ValueError("step_at must rise strictly inside (0, 1)")
        for name, (low, high) in (("scale_jitter", self.scale_jitter), ("mosaic_scale", self.mosaic_scale)):
            if not 0.1 <= low <= high <= 4:
                raise ValueError(f"{name} must satisfy 0.1 <= low <= high <= 4")
        return self

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate between warm-up and decay, by the scale rule."""
        ratio = self.batch_size / self.learning_rate_batch
        return self.learning_rate * (math.sqrt(ratio) if self.optimizer == "adamw" else ratio)

    @property
    def augmentation(self) -> Augmentation:
        """What happens to a training image."""
        return Augmentation(
            flip=self.flip,
            scale_jitter=self.scale_jitter,
            mosaic=self.mosaic,
            mosaic_scale=self.mosaic_scale,
            color_jitter=self.color_jitter,
        )

    @property
    def losses(self) -> LossOptions:
        """Which losses are minimised."""
        return LossOptions(box=self.box_loss, assignment=self.assignment)

    @property
    def mosaic_epochs(self) -> int:
        """Epochs with mosaics, from the first on."""
        return round(self.mosaic_until * self.epochs)

    @classmethod
    def parse(cls, values: dict[str, Any]) -> "Recipe":
        """Check plain values, as read from TOML or JSON.

        Raises:
            RecipeError: an unknown key or a value out of its bounds.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise RecipeError(_one_line(error)) from None

    def with_(self, **changes: Any) -> "Recipe":
        """A copy with some settings changed, checked like a new one; ``None`` values leave a setting as it is.

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
    """The recipes that come with the project, sorted."""
    return tuple(
        sorted(entry.name.removesuffix(".toml") for entry in _FOLDER.iterdir() if entry.name.endswith(".toml"))
    )


def load_recipe(name: str) -> Recipe:
    """Read a recipe that comes with the project, or a TOML file of one's own.

    Args:
        name: A known name, or the path of a file that ends in ``.toml``; such a recipe is called as the file is.

    Raises:
        RecipeError: no such recipe or file, or one that breaks a rule; the message lists the known names.
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
