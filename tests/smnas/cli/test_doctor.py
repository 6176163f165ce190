"""``smnas doctor``: the facts are the machine's, and what is missing comes with the command that adds it."""

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from kernels import dispatch
from profiler.measuring import noise
from profiler.measuring.noise import Noise
from smnas.cli import doctor
from smnas.cli.main import application
from smnas.cli.terminal.exit_codes import run


def test_facts_are_the_machines(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(application("doctor"), "smnas-doctor", ["--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["torch"] == torch.__version__
    assert document["cuda"]["available"] == torch.cuda.is_available()
    assert len(document["cuda"]["devices"]) == torch.cuda.device_count()
    assert document["cpu"]["cores"] == os.cpu_count()
    assert 1 <= document["cpu"]["usable_cores"] <= document["cpu"]["cores"]
    backends = {row["name"]: row for row in document["backends"]}
    assert backends["eager"]["version"] == torch.__version__
    for row in document["backends"]:
        assert row["available"] == (row["version"] is not None)
        assert row["available"] or row["reason"]


def test_text_names_what_is_missing_with_its_fix(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(application("doctor"), "smnas-doctor", ["--quiet"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert f"torch    {torch.__version__}, torchvision" in captured.out
    missing = [row for row in doctor.examine()["backends"] if not row["available"]]
    assert all(f"missing: {row['name']} on {row['device']}: {row['reason']}" in captured.out for row in missing)


def test_what_reads_videos(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.examine()["video"]["version"] == version("av")
    monkeypatch.setitem(sys.modules, "av", None)
    assert run(application("doctor"), "smnas-doctor", []) == 0
    assert "missing: videos and cameras: " in (out := capsys.readouterr().out)
    assert "pip install 'smnas[video]'" in out


def test_who_computes_what_has_a_kernel(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("SMNAS_KERNELS", raising=False)
    assert doctor.examine()["kernels"]["chosen"] == "measured"
    assert run(application("doctor"), "smnas-doctor", ["--quiet"]) == 0
    assert "NMS on CUDA devices by ours (SMNAS_KERNELS=triton chooses all" in capsys.readouterr().out
    monkeypatch.setattr(dispatch, "can_build", lambda: False)
    assert run(application("doctor"), "smnas-doctor", ["--quiet"]) == 0
    assert "off, PyTorch's operators everywhere; Triton starts kernels by a C compiler" in capsys.readouterr().out
    monkeypatch.undo()
    monkeypatch.setenv("SMNAS_KERNELS", "torch")
    assert run(application("doctor"), "smnas-doctor", ["--quiet"]) == 0
    assert "off, PyTorch's operators everywhere; Triton" in capsys.readouterr().out
    monkeypatch.setenv("SMNAS_KERNELS", "triton")
    assert doctor.examine()["kernels"]["triton"] == version("triton")
    assert run(application("doctor"), "smnas-doctor", ["--quiet"]) == 0
    assert "ours on CUDA devices, PyTorch's operators elsewhere; Triton" in capsys.readouterr().out
    monkeypatch.setenv("SMNAS_KERNELS", "cuda")
    assert run(application("doctor"), "smnas-doctor", ["--quiet"]) == 2
    assert capsys.readouterr().err == "error: SMNAS_KERNELS must be one of measured, torch, triton, but got 'cuda'\n"


def test_a_distribution_that_takes_the_name_of_ours_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = tmp_path / "kernels-9.9.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 9.9\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert run(application("doctor"), "smnas-doctor", []) == 0
    assert "another distribution, kernels 9.9" in capsys.readouterr().out


def test_noise_is_measured_where_it_is_wanted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = Noise(0.5, (0.5, 0.6), 0.2, 0.1, 0.04, 0.02, 0.0, 1.0, None, "powersave", None, 1, ("Do this.",))
    monkeypatch.setattr(noise, "noise_here", lambda on_progress: found)
    assert run(application("doctor"), "smnas-doctor", ["--json"]) == 0
    assert "noise" not in json.loads(capsys.readouterr().out)
    assert run(application("doctor"), "smnas-doctor", ["--measure", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["noise"]["table_error"] == 0.04
    assert run(application("doctor"), "smnas-doctor", ["--measure", "--quiet"]) == 0
    out = capsys.readouterr().out
    assert "95% within 4.0% in a table, 10.0% of single bursts" in out
    assert "changes: not readable, governor: powersave" in out
    assert "to do: Do this." in out
