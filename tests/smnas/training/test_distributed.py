"""Several processes train what one trains: started by torchrun, talking by gloo over loopback."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import distributed_stub as stub
import pytest
import torch
from curves import read_curve

from profiler.errors import UserError
from smnas.data.coco import CocoFolder
from smnas.data.loader import TrainLoader
from smnas.data.shapes import generate_shapes
from smnas.training.distributed import ranks_from_environment
from smnas.training.fit import fit_batches

STAND_INS = next(folder for folder in Path(__file__).parents if folder.name == "tests") / "stand_ins"


def torchrun(*arguments: str, processes: int = 2) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [*command, *arguments], capture_output=True, text=True, timeout=300, env=environment, check=False
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes leave that train to the end, and then once more with NaN in one's batches."""
    folder = tmp_path_factory.mktemp("trained")
    done = torchrun(str(STAND_INS / "distributed_script.py"), str(folder), "nan")
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


@pytest.mark.slow
def test_two_processes_train_what_one_trains(trained: Path) -> None:
    weights, losses = zip(*(torch.load(trained / f"rank-{rank}.pt") for rank in range(2)), strict=True)
    alone = stub.detector()
    result = fit_batches(alone, stub.ShareOfBatches(), stub.info())
    for name, expected in alone.state_dict().items():
        assert torch.equal(weights[0][name], weights[1][name]), "ranks stay equal, bit by bit"
        torch.testing.assert_close(weights[0][name], expected, rtol=1e-4, atol=1e-5)
    assert losses[0] == losses[1] == pytest.approx([log.loss for log in result.history], rel=1e-4)
    assert len(read_curve(trained / "curve.jsonl")) == 4, "one process writes"


@pytest.mark.slow
def test_processes_that_died_together_resume_to_the_same_weights(tmp_path: Path, trained: Path) -> None:
    died = torchrun(str(STAND_INS / "distributed_script.py"), str(tmp_path), "2")
    assert died.returncode != 0
    assert len(read_curve(tmp_path / "curve.jsonl")) == 2
    done = torchrun(str(STAND_INS / "distributed_script.py"), str(tmp_path))
    assert done.returncode == 0, done.stderr[-2000:]
    resumed, _ = torch.load(tmp_path / "rank-0.pt")
    for name, expected in torch.load(trained / "rank-0.pt")[0].items():
        assert torch.equal(resumed[name], expected)


@pytest.mark.slow
def test_one_processs_nan_ends_all_of_them(trained: Path) -> None:
    reasons = [(trained / f"diverged-{rank}").read_text() for rank in range(2)]
    assert reasons[0] == reasons[1]
    assert "not finite in step 1" in reasons[0]
    assert json.loads((trained / "nan" / "failure.json").read_text())["step"] == 0


@pytest.mark.slow
def test_shares_of_a_batch_make_up_the_batch(tmp_path: Path) -> None:
    dataset = CocoFolder(generate_shapes(tmp_path, train=12, val=2, width=64, height=64)).split("train")
    whole = list(TrainLoader(dataset, 64, 64, 4, seed=3).epoch(1))
    parts = [list(TrainLoader(dataset, 64, 64, 4, seed=3, share=(part, 2)).epoch(1)) for part in range(2)]
    for number, batch in enumerate(whole):
        for part in range(2):
            share = parts[part][number]
            assert torch.equal(share.images, batch.images[part::2])
            for ours, theirs in zip(share.targets, batch.targets[part::2], strict=True):
                assert torch.equal(ours.boxes, theirs.boxes)
    with pytest.raises(ValueError, match="equal parts"):
        TrainLoader(dataset, 64, 64, 4, seed=3, share=(0, 3))


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "code"), [("6", 0), ("5", 2)])
def test_the_command_trains_in_two_processes(tmp_path: Path, batch: str, code: int) -> None:
    generate_shapes(tmp_path / "data", train=12, val=3, width=64, height=64)
    arch = "basicblock_8_1-2-2+fpn_3-4_16+norpn+retina_16_1+64x64"
    done = torchrun(
        *("-m", "smnas", "train", "--arch", arch, "--data", str(tmp_path / "data"), "--epochs", "2", "--json"),
        *("--batch-size", batch, "--evaluate-every", "1", "--tensorboard", "--out", str(tmp_path / "out")),
    )
    if code:
        assert done.returncode != 0
        assert "share each batch equally, but got 2 processes for batches of 5 out of 12 images" in done.stderr
        return
    assert done.returncode == 0, done.stderr[-2000:]
    document = json.loads(done.stdout)
    assert document["epochs"] == 2
    curve = read_curve(tmp_path / "out" / "curve.jsonl")
    assert [log.ap is not None for log in curve] == [True, True]
    assert document["metrics"]["ap"] == max(log.ap for log in curve if log.ap is not None), "the better epoch is kept"
    lines = [line for line in done.stderr.splitlines() if re.match(r"epoch \d/2:", line)]
    assert [line.split(":")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"], "one process speaks"
    for line, log in zip(lines, curve, strict=True):
        for part in (f"loss {log.loss:.3f}", f"AP {log.ap:.3f}", f"{log.images_per_s:.0f} images/s", " MiB"):
            assert part in line
    assert " left" in lines[0]
    assert len(list((tmp_path / "out" / "tensorboard").iterdir())) == 1


@pytest.mark.parametrize(
    ("variables", "got"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE='2' without RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT"),
        (
            {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "me", "MASTER_PORT": "1"},
            "WORLD_SIZE='2' without LOCAL_RANK",
        ),
        ({"WORLD_SIZE": "many"}, "WORLD_SIZE='many' without RANK"),
    ],
)
def test_half_an_environment_is_no_torchrun(
    variables: dict[str, str], got: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"started by torchrun, but got {got}"), ranks_from_environment():
        pass
