"""Conditions: what the machine tells is read, what it does not tell is left out."""

import json
import os
import platform
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from profiler.devices import Device, cpu_device
from profiler.timing import conditions
from profiler.timing.conditions import disturbances, read_state, read_versions

GPU = Device("NVIDIA Pretend", "cuda", 1)


def test_versions_are_those_that_run() -> None:
    versions = read_versions()
    assert versions["python"] == platform.python_version()
    assert versions["torch"] == torch.__version__


def test_the_state_of_a_cpu_is_json_and_knows_the_load() -> None:
    state = read_state(cpu_device())
    assert json.loads(json.dumps(state)) == state
    assert state["cpus"] == os.cpu_count()
    assert len(state["loadavg"]) == 3


def test_governor_and_clock_are_read_where_the_system_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditions, "_CPUFREQ", tmp_path)
    assert "governor" not in read_state(cpu_device())
    (tmp_path / "scaling_governor").write_text("powersave\n")
    (tmp_path / "scaling_cur_freq").write_text("2100000\n")
    state = read_state(cpu_device())
    assert (state["governor"], state["clock_mhz"]) == ("powersave", 2100.0)


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program of that name, alone on the path, where NVML is not to be had."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid={1: "ab-cd"}[index]))
    program = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path))
    return program


def write_program(path: Path, body: str) -> None:
    path.write_text(f"#!{sys.executable}\nimport sys\n{body}\n")
    path.chmod(0o755)


def test_a_gpus_clocks_and_throttling_are_asked_for_by_identity(nvidia_smi: Path) -> None:
    write_program(
        nvidia_smi,
        "assert '--id=GPU-ab-cd' in sys.argv\nprint('1980, 2619, 41, 120.50, 0x0000000000000004, 570.86')",
    )
    state = read_state(GPU)
    assert state["clocks.sm"] == "1980"
    assert state["clocks_throttle_reasons.active"] == "0x0000000000000004"
    assert state["driver_version"] == "570.86"


@pytest.mark.parametrize("body", ["sys.exit(9)", "pass"])
def test_a_gpu_that_tells_nothing_is_no_error(body: str, nvidia_smi: Path) -> None:
    write_program(nvidia_smi, body)
    assert "clocks.sm" not in read_state(GPU)


def test_no_program_is_no_error(nvidia_smi: Path) -> None:
    assert not nvidia_smi.exists()
    assert read_state(GPU)["cpus"] == os.cpu_count()


def test_nvml_is_asked_by_identity_and_what_a_board_lacks_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = pytest.importorskip("pynvml", reason="needs nvidia-ml-py: pip install nvidia-ml-py")
    called: list[str] = []

    def no_sensor(handle: object) -> int:
        raise nvml.NVMLError(nvml.NVML_ERROR_NOT_SUPPORTED)

    answers = {
        "nvmlInit": lambda: called.append("init"),
        "nvmlShutdown": lambda: called.append("shutdown"),
        "nvmlDeviceGetHandleByUUID": lambda uuid: uuid,
        "nvmlDeviceGetClockInfo": lambda handle, kind: {nvml.NVML_CLOCK_SM: 1980, nvml.NVML_CLOCK_MEM: 2619}[kind],
        "nvmlDeviceGetTemperature": lambda handle, sensor: 41,
        "nvmlDeviceGetPowerUsage": no_sensor,
        "nvmlDeviceGetCurrentClocksThrottleReasons": lambda handle: 0x4 if handle == "GPU-ab-cd" else 0,
        "nvmlSystemGetDriverVersion": lambda: "570.86",
    }
    for name, answer in answers.items():
        assert hasattr(nvml, name), name  # the true module's
        monkeypatch.setattr(nvml, name, answer)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid={1: "ab-cd"}[index]))
    state = read_state(GPU)
    assert state["read_by"] == "nvml"
    assert (state["clocks.sm"], state["clocks.mem"], state["temperature.gpu"]) == (1980, 2619, 41)
    assert "power.draw" not in state
    idle = {**state, "loadavg": [0.0, 0.0, 0.0]}
    assert disturbances(idle, idle) == ["throttled: power cap"]
    assert called == ["init", "shutdown"]


def test_what_disturbs_a_measurement_is_named() -> None:
    quiet = {"cpus": 4, "loadavg": [1.2, 9.0, 9.0], "clock_mhz": 3000.0}
    assert disturbances(quiet, quiet) == []
    assert disturbances({**quiet, "loadavg": [3.9, 0.0, 0.0]}, quiet) == ["load 3.9 on 4 cores"]
    assert disturbances({**quiet, "loadavg": [3.9, 0.0, 0.0]}, quiet, threads=4) == []  # its own load
    assert disturbances({"cpus": 1, "loadavg": [1.0, 1.0, 1.0]}, {}) == []
    assert disturbances(quiet, {**quiet, "clock_mhz": 2400.0}) == ["clock changed by -20%"]
    assert disturbances({}, {}) == []
    used = {"wall_s": 0.3, "cpu_s": 0.29, "steal_s": 0.0, "preemptions": 2}
    assert disturbances({}, {}, used=used) == []
    assert disturbances({}, {}, used={**used, "cpu_s": 0.1}) == ["waited for a core"]
    assert disturbances({}, {}, used={**used, "steal_s": 0.1}) == ["a core was taken by the hypervisor"]


def test_throttling_is_read_off_the_drivers_bits() -> None:
    def gpu(reasons: str) -> dict[str, str]:
        return {"clocks.sm": "1980", "clocks.mem": "2619", "clocks_throttle_reasons.active": reasons}

    assert disturbances(gpu("0x0000000000000001"), gpu("0x0000000000000000")) == []  # idle is no reason
    found = disturbances(gpu("0x0000000000000000"), gpu("0x0000000000000044"))
    assert found == ["throttled: power cap", "throttled: hardware thermal slowdown"]
    assert disturbances(gpu("[N/A]"), gpu("[N/A]")) == []


@pytest.mark.parametrize("clock", [b"<unknown>\n", b"", b"1.2e6", b"\xff\xfe", b"n/a"])
def test_a_clock_file_without_a_number_states_no_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: bytes
) -> None:
    (tmp_path / "scaling_governor").write_text("powersave\n")
    (tmp_path / "scaling_cur_freq").write_bytes(clock)
    monkeypatch.setattr(conditions, "_CPUFREQ", tmp_path)
    state = read_state(cpu_device())
    assert state["governor"] == "powersave"
    assert "clock_mhz" not in state
