"""``smnas doctor``: capabilities of this machine, and the commands that add what is missing."""

import importlib.metadata
import os
import platform
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from profiler.errors import BackendUnavailableError
from smnas.cli.terminal.console import Output, show_facts, show_lines, show_table
from smnas.cli.terminal.options import JsonOption, QuietOption, examples
from smnas.cli.terminal.progress import PhaseSteps

if TYPE_CHECKING:
    from profiler.devices import Device

__all__ = ["EXAMPLES", "doctor"]

EXAMPLES = examples("smnas doctor", "smnas doctor --measure", "smnas-doctor --json")


def doctor(
    measure: Annotated[bool, typer.Option("--measure", help="Measure for 40 s how noisy it is for latency.")] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show what this machine can do.

    Lists Python, PyTorch, the CPU, CUDA devices, the kernels used for training (PyTorch's or ours), the video library,
    and the backends that can run and time a network, each with its version. Missing parts are listed with the command
    that adds them. Nothing is installed or changed.

    With --measure a reference block is timed in rounds for 40 seconds: how far they differ, the error to expect of a
    latency table made now, what takes the time (other processes, the hypervisor, the clock), and what to do about it.
    """
    with Output.open(as_json=as_json, quiet=quiet) as output:
        with output.working("looking at this machine"):
            document = examine()
        if measure:  # a terminal shows one live display at a time
            document["noise"] = _noise(output)
        output.result(document, lambda console: _show(console, document))


def examine() -> dict[str, Any]:
    """Facts of ``smnas doctor``, as JSON types."""
    import torch
    import torchvision

    from profiler.devices import cpu_device, local_gpus, openvino_devices
    from smnas import __version__
    from smnas.training.device import cpu_cores

    cpu, gpus = cpu_device(), local_gpus()
    backends = [row for device in (cpu, *gpus, *openvino_devices()) for row in _backends(device)]
    video, kernels = _video(), _kernels()
    return {
        "smnas": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "cpu": {"name": cpu.name, "cores": os.cpu_count(), "usable_cores": cpu_cores()},
        "cuda": {
            "runtime": torch.version.cuda,
            "available": torch.cuda.is_available(),
            "devices": [
                {
                    "name": gpu.name,
                    "known_as": gpu.sheet.name if gpu.sheet else None,
                    "compute_capability": f"{properties.major}.{properties.minor}",
                    "memory_bytes": properties.total_memory,
                }
                for gpu in gpus
                for properties in [torch.cuda.get_device_properties(gpu.index)]
            ],
        },
        "kernels": kernels,
        "backends": backends,
        "video": video,
        "missing": [
            {"what": what, "reason": found["reason"]}
            for what, found in [
                *((f"{row['name']} on {row['device']}", row) for row in backends),
                ("videos and cameras", video),
                ("Triton kernels", kernels),
            ]
            if not found["available"]
        ],
        "warnings": _warnings(),
    }


def _noise(output: Output) -> dict[str, Any]:
    from profiler.measuring.noise import noise_here

    with PhaseSteps(output) as steps:
        return asdict(noise_here(partial(steps.step, "rounds of a reference block")))


def _backends(device: "Device") -> list[dict[str, Any]]:
    from profiler.backends import BACKENDS, get_backend

    def facts(name: str) -> dict[str, Any]:
        backend = get_backend(name, device)
        return {"version": backend.version, "precisions": list(backend.precisions)}

    nothing: dict[str, Any] = {"version": None, "precisions": []}
    names = ["openvino"] if device.kind == "openvino" else BACKENDS
    return [{"name": name, "device": device.name, **_found(partial(facts, name), nothing)} for name in names]


def _video() -> dict[str, Any]:
    from smnas.inference.video import video_version

    return {"library": "PyAV", **_found(lambda: {"version": video_version()}, {"version": None})}


def _found(facts: Callable[[], dict[str, Any]], nothing: dict[str, Any]) -> dict[str, Any]:
    """Facts of something that may be unavailable here, and the reason why."""
    try:
        return {**facts(), "reason": None, "available": True}
    except BackendUnavailableError as reason:
        return {**nothing, "reason": str(reason), "available": False}


def _kernels() -> dict[str, Any]:
    """The chosen implementation of operators with a Triton kernel, and whether Triton is installed."""
    from kernels.dispatch import VARIABLE, can_build, choice

    found: dict[str, Any] = {"chosen": choice(), "variable": VARIABLE, "triton": None, "reason": None}
    try:
        found["triton"] = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        found["reason"] = "Triton is not installed: pip install triton"
    else:
        if not can_build():
            found["reason"] = "Triton starts kernels by a C compiler, and there is neither gcc nor clang"
    return {**found, "available": found["reason"] is None}


def _warnings() -> list[str]:
    try:
        version = importlib.metadata.version("kernels")
    except importlib.metadata.PackageNotFoundError:
        return []
    return [
        f"another distribution, kernels {version}, is imported under the name of a package of smnas: "
        "run `pip uninstall kernels`, then install smnas again"
    ]


def _show(console: Console, document: dict[str, Any]) -> None:
    cpu, cuda, video = document["cpu"], document["cuda"], document["video"]
    gpus = [
        f"{gpu['name']}, compute capability {gpu['compute_capability']}, {gpu['memory_bytes'] / 2**30:.1f} GiB, "
        f"--device {gpu['known_as'] or 'local'}"
        for gpu in cuda["devices"]
    ]
    show_facts(
        console,
        [
            ("smnas", document["smnas"]),
            ("python", f"{document['python']} on {document['system']}"),
            ("torch", f"{document['torch']}, torchvision {document['torchvision']}"),
            ("cpu", f"{cpu['name']}, {cpu['cores']} cores, {cpu['usable_cores']} usable"),
            ("cuda", f"runtime {cuda['runtime']}" if cuda["available"] else "no device"),
            *(("gpu", gpu) for gpu in gpus),
            ("kernels", _kernels_line(document["kernels"])),
            ("video", f"{video['library']} {video['version']}" if video["available"] else "no library"),
        ],
    )
    rows = [
        [row["name"], row["device"], row["version"], ", ".join(row["precisions"]) or None]
        for row in document["backends"]
    ]
    show_table(console, ["backend", "on", "version", "precisions"], rows)
    show_lines(console, *(f"missing: {entry['what']}: {entry['reason']}" for entry in document["missing"]))
    show_lines(console, *(f"warning: {line}" for line in document["warnings"]))
    if (noise := document.get("noise")) is not None:
        show_facts(console, _noise_facts(noise))
        show_lines(console, *(f"to do: {line}" for line in noise["advice"]))


def _noise_facts(noise: dict[str, Any]) -> list[tuple[str, str]]:
    def known(value: float | None) -> str:
        return "not readable" if value is None else f"{value:.1%}"

    return [
        (
            "block",
            f"{noise['median_ms']:.3f} ms in {len(noise['rounds_ms'])} rounds, {known(noise['round_spread'])} apart",
        ),
        (
            "error",
            f"95% within {known(noise['table_error'])} in a table, {known(noise['burst_error'])} of single bursts",
        ),
        ("stolen", f"{known(noise['stolen'])} of the time, by the hypervisor"),
        ("waiting", f"{known(noise['waiting'])} of the time, {noise['preemptions_per_s']:.1f} switches a second"),
        ("clock", f"changes: {known(noise['clock_change'])}, governor: {noise['governor'] or 'not readable'}"),
        ("sibling", f"busy: {known(noise['sibling_load'])}"),
    ]


def _kernels_line(kernels: dict[str, Any]) -> str:
    there = f"Triton {kernels['triton']}" if kernels["triton"] else "no Triton"
    match kernels["chosen"]:
        case "triton":
            return f"ours on CUDA devices, PyTorch's operators elsewhere; {there}"
        case "measured" if kernels["available"]:
            return f"NMS on CUDA devices by ours ({kernels['variable']}=triton chooses all of them); {there}"
        case _:
            why = kernels["reason"] if kernels["chosen"] == "measured" else None
            return f"off, PyTorch's operators everywhere; {why or there}"
