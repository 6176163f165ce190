"""The curve of a training run as TensorBoard event files."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from profiler.errors import UserError
from smnas.training.curve import EpochLog

__all__ = ["TensorBoard"]


class TensorBoard(AbstractContextManager["TensorBoard"]):
    """TensorBoard event files of one run, as a context manager.

    A resumed run replaces those in ``folder`` from its ``history``, so that no epoch appears twice.

    Raises:
        UserError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, history: Sequence[EpochLog]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError("TensorBoard logs need the package tensorboard: pip install 'smnas[tensorboard]'") from None
        for earlier in folder.glob("events.out.tfevents.*"):
            earlier.unlink()
        self._writer = SummaryWriter(str(folder))
        for log in history:
            self.add(log)

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def add(self, log: EpochLog) -> None:
        """Write one epoch."""
        scalars = {
            "loss/sum": log.loss,
            **{f"loss/{name}": value for name, value in log.losses.items()},
            "learning_rate": log.learning_rate,
            "speed/images_per_s": log.images_per_s,
            "speed/memory_mb": log.memory_mb,
            "validation/AP": log.ap,
            "validation/AP50": log.ap50,
        }
        for name, value in scalars.items():
            if value is not None:
                self._writer.add_scalar(name, value, log.epoch)
        self._writer.flush()
