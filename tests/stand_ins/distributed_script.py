"""Train a stub together with others: started by ``torchrun`` in ``test_distributed.py``.

python -m torch.distributed.run ... distributed_script.py FOLDER [EPOCH_TO_DIE_AFTER | nan]
"""

import os
import sys
from pathlib import Path

import torch
from distributed_stub import ShareOfBatches, detector, info

from smnas.training.distributed import ranks_from_environment
from smnas.training.errors import DivergedError
from smnas.training.fit import fit_batches


def main() -> None:
    folder, what = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else ""
    with ranks_from_environment() as (ranks, device):
        model = detector(seed=ranks.rank)  # only the first one's weights must matter
        batches = ShareOfBatches(ranks.rank, ranks.count)

        def on_epoch(log) -> None:  # type: ignore[no-untyped-def]
            if what == str(log.epoch):
                ranks.wait()
                os._exit(7)

        given = {"device": device, "ranks": ranks}
        result = fit_batches(model, batches, info(), out_dir=folder, on_epoch=on_epoch, **given)
        torch.save((model.state_dict(), [log.loss for log in result.history]), folder / f"rank-{ranks.rank}.pt")
        if what == "nan":
            spoilt = ShareOfBatches(ranks.rank, ranks.count, spoilt=ranks.rank == 1)
            try:
                fit_batches(detector(), spoilt, info(), out_dir=folder / "nan", **given)
            except DivergedError as error:
                (folder / f"diverged-{ranks.rank}").write_text(error.reason)


if __name__ == "__main__":
    main()
