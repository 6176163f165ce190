"""Devices: names resolve to what is here, or to an error that names the ways out; the sheet's figures hang together."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from profiler.devices import (
    Device,
    DeviceNotPresentError,
    cpu_device,
    cpu_name,
    gpu_sheets,
    local_gpus,
    matching_names,
    resolve_device,
)
from profiler.errors import UserError

KNOWN = ["v100", "t4", "a10", "a100", "l4", "l40s", "h100", "h200", "rtx3090", "rtx4090", "rtx5090", "orin"]


def pretend_gpus(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(names))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(names))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: names[index])


def test_the_sheet_knows_the_gpus_people_ask_for() -> None:
    assert list(gpu_sheets()) == KNOWN


@pytest.mark.parametrize("name", KNOWN)
def test_peaks_follow_from_cores_and_clock(name: str) -> None:
    sheet = gpu_sheets()[name]
    # fp32 cores of a multiprocessor by compute capability (CUDA programming guide, arithmetic throughput).
    cores = {"7.0": 64, "7.5": 64, "8.0": 64}.get(sheet.compute_capability, 128)
    tflops = 2 * cores * sheet.multiprocessors * sheet.boost_mhz * 1e6 / 1e12
    assert sheet.fp32_tflops == pytest.approx(tflops, rel=0.02)
    if sheet.int8_tops is not None:
        # GeForce boards halve fp16 products that are added up in fp32.
        ratio = 4 if sheet.name.startswith("rtx") else 2
        assert sheet.int8_tops / sheet.fp16_tflops == pytest.approx(ratio, rel=0.03)


@pytest.mark.parametrize(
    ("device_name", "sheet_name"),
    [
        ("Tesla V100-SXM2-16GB", "v100"),
        ("Tesla T4", "t4"),
        ("NVIDIA A10", "a10"),
        ("NVIDIA A10G", None),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L40", None),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA GeForce RTX 3090", "rtx3090"),
        ("NVIDIA GeForce RTX 3090 Ti", None),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 5090", "rtx5090"),
        ("Orin", "orin"),
        ("AMD EPYC 9654", None),
    ],
)
def test_driver_names_are_recognised(device_name: str, sheet_name: str | None) -> None:
    recognised = [name for name, sheet in gpu_sheets().items() if sheet.is_called(device_name)]
    assert recognised == ([] if sheet_name is None else [sheet_name])


def test_a_gpu_that_is_here_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch, "NVIDIA Exotic", "NVIDIA H200")
    found = resolve_device("H200")
    assert found == Device("NVIDIA H200", "cuda", 1, gpu_sheets()["h200"])
    assert resolve_device("local") == Device("NVIDIA Exotic", "cuda", 0, None)
    assert len(local_gpus()) == 2


def test_spelling_is_forgiven(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch, "NVIDIA GeForce RTX 4090")
    for name in ("rtx4090", "RTX 4090", "rtx-4090"):
        assert resolve_device(name).name == "NVIDIA GeForce RTX 4090"


def test_without_a_gpu_local_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch)
    assert resolve_device("local") == resolve_device("cpu") == cpu_device()
    assert cpu_device().kind == "cpu"
    assert cpu_device().name


@pytest.mark.parametrize("present", [(), ("NVIDIA H200",)])
def test_an_absent_gpu_names_the_ways_out(monkeypatch: pytest.MonkeyPatch, present: tuple[str, ...]) -> None:
    pretend_gpus(monkeypatch, *present)
    with pytest.raises(DeviceNotPresentError) as caught:
        resolve_device("v100")
    message = str(caught.value)
    assert isinstance(caught.value, UserError)
    assert caught.value.sheet.name == "v100"
    assert "\n" not in message
    for way_out in ("run there", "--table FILE", "--estimate", "--device local" if present else "--device cpu"):
        assert way_out in message
    assert ("H200" if present else "no GPU") in message


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UserError) as caught:
        resolve_device("gtx970")
    message = str(caught.value)
    assert "'gtx970'" in message
    assert all(name in message for name in ("cpu", "local", *KNOWN))


def test_a_tables_devices_are_matched_by_sheet() -> None:
    names = ["AMD EPYC", "Tesla V100-SXM2-16GB", "NVIDIA H200", "Tesla V100-PCIE-32GB"]
    assert matching_names(gpu_sheets()["v100"], names) == ("Tesla V100-SXM2-16GB", "Tesla V100-PCIE-32GB")


def test_processor_names(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text("processor : 0\ncpu family\t: 6\nmodel\t\t: 143\nmodel name\t: Intel Xeon\n\nmodel name : second\n")
    assert cpu_name(path) == "Intel Xeon (family 6 model 143)"
    path.write_text("model name\t: Some CPU\n")
    assert cpu_name(path) == "Some CPU"
    path.write_text("CPU implementer\t: 0x41\nCPU part\t: 0xd0c\n")
    assert cpu_name(path).endswith("implementer 0x41 part 0xd0c")
    assert cpu_name(tmp_path / "absent")


def test_the_sheet_loads_no_torch() -> None:
    code = "import sys; from profiler.devices import gpu_sheets, resolve_device; gpu_sheets(); resolve_device('cpu')\n"
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
