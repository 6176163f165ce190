"""Do the engines beside eager PyTorch run on this GPU, and do they compute the same?"""

import importlib
import json
import statistics
from collections import Counter
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.common.detectors import NANO_BASELINE, SMALL_BASELINE, deployed
from benchmarks.common.gpu_question import Answer, Setting
from benchmarks.common.machine import one_line
from benchmarks.common.turns import largest_error, ratios, take_turns
from profiler.backends import Session, get_backend
from profiler.backends.engine import Engine
from profiler.engines.tensorrt import build_engine, compute_capabilities
from profiler.graphs.export import to_onnx
from profiler.timing.measurement import TimingSettings, measure
from profiler.workload import Workload, random_inputs
from smnas.latency.workloads import end_to_end_workload, inference_workloads

_ROUNDS = 9
_ROUND = TimingSettings(relative_half_width=0.02, min_samples=8, max_samples=200, time_limit_s=0.4)


def run_onnxruntime(setting: Setting, answer: Answer) -> str:
    """Every step's outputs against eager on the same device, end-to-end latencies, and where the nodes ran.

    Raises:
        BackendUnavailableError: ONNX Runtime, or its provider for the device, is not there.
    """
    onnxruntime = get_backend("onnxruntime", setting.device)
    eager = get_backend("eager", setting.device)
    texts = []
    names = (NANO_BASELINE,) if setting.quick else (NANO_BASELINE, SMALL_BASELINE)
    if setting.quick:
        answer.skip("the small baseline", "--quick looks at the nano baseline only")
    for name in names:
        detector = deployed(name)
        steps = inference_workloads(detector)
        openers = onnxruntime.prepare_many([(step.module, random_inputs(step.inputs, 0)) for step in steps])
        failed, largest = 0, 0.0
        for step, open_session in zip(steps, openers, strict=True):
            row: dict[str, Any] = {"architecture": name, "step": step.name}
            try:
                row |= _difference(open_session(), eager.prepare(step.module, random_inputs(step.inputs, 0)))
                largest = max(largest, row["relative_error"])
            except Exception as error:  # noqa: BLE001 - a step that does not run is its own answer
                failed += 1
                row["failed"] = one_line(error)
            answer.add("steps", row)
        whole = end_to_end_workload(detector)
        inputs = random_inputs(whole.inputs, 0)
        sessions = {"onnxruntime": onnxruntime.prepare(whole.module, inputs), "eager": eager.prepare(detector, inputs)}
        rounds = take_turns(
            {kind: partial(_session_ms, session) for kind, session in sessions.items()}, 3 if setting.quick else _ROUNDS
        )
        ratio = statistics.median(ratios(rounds["eager"], rounds["onnxruntime"]))
        described = {kind: session.describe() for kind, session in sessions.items()}
        answer.add("wholes", {"architecture": name, "rounds_ms": rounds, "speed_against_eager": ratio, **described})
        answer.add("node_runs", {"architecture": name, "by_provider": _node_runs(setting, whole, onnxruntime)})
        texts.append(
            f"{len(steps) - failed} of {len(steps)} steps run, largest relative error {largest:.1e}, "
            f"end to end {ratio:.2f} times eager's speed"
        )
    return "; ".join(texts)


def run_tensorrt(setting: Setting, answer: Answer) -> str:
    """Whether the packages can be imported, and whether each builds and runs a convolution here.

    The engine's outputs are compared with PyTorch's on the same numbers.
    """
    texts = []
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()).eval()
    x = torch.rand(1, 3, 32, 32)
    for name in ("tensorrt_rtx", "tensorrt"):
        row: dict[str, Any] = {"package": name}
        try:
            trt = importlib.import_module(name)
        except (ImportError, OSError) as error:  # the wheel may be there without the libraries that it loads
            row["import"] = one_line(error)
            texts.append(row["import"])
        else:
            row["version"] = str(getattr(trt, "__version__", "unknown"))
            texts.append(f"{name} {row['version']} imported")
            row["ways"] = []
            for way, ahead in _ways(trt, setting):
                found: dict[str, Any] = {"way": way}
                try:
                    model = to_onnx(module, (x,), input_names=["x"], output_names=["y"], operators="plain")
                    built = build_engine(trt, model.SerializeToString(), "fp32", ahead)
                    outputs = Engine(trt, built.content, setting.place)({"x": x})["y"].cpu().numpy()
                    with torch.no_grad():
                        found["largest_error"] = largest_error(outputs, module(x).numpy())
                    texts.append(f"{way}: a convolution runs, largest error {found['largest_error']:.1e}")
                except Exception as error:  # noqa: BLE001 - a package that does not run is its own answer
                    found["failed"] = one_line(error)
                    texts.append(f"{way}: {found['failed']}")
                row["ways"].append(found)
        answer.add("packages", row)
    return "; ".join(texts)


def _ways(trt: Any, setting: Setting) -> list[tuple[str, list[str]]]:
    """Compute capabilities to build for: this GPU's where the module knows it, else every way that might run here."""
    here = ".".join(map(str, torch.cuda.get_device_capability(setting.device.index)))
    known = compute_capabilities(trt)
    if not known:
        return [("built here", [])]
    if here in known:
        return [(f"built for {here}", [here])]
    older = [name for name in known if float(name) < float(here)]
    return [("built for the GPU that is here", []), *((f"built for {name}", [name]) for name in older[-2:])]


def _difference(ours: Session, reference: Session) -> dict[str, float]:
    with ours, reference:
        pairs = list(zip(ours.outputs(), reference.outputs(), strict=True))
    error = max(largest_error(a, b) for a, b in pairs)
    largest = max(float(np.abs(b.astype(np.float64)).max(initial=0.0)) for _, b in pairs)
    return {"max_abs_error": error, "largest_reference": largest, "relative_error": error / max(largest, 1e-12)}


def _session_ms(session: Session) -> float:
    with session:
        return measure(session.run, timer=session.timer, settings=_ROUND).median_ms


def _node_runs(setting: Setting, whole: Workload, backend: Any) -> dict[str, dict[str, int]]:
    """Kinds of node that each provider ran: what a GPU's provider has no kernel for goes to the CPU and back."""
    from profiler.backends.onnxruntime import session_options

    runtime: Any = importlib.import_module("onnxruntime")
    inputs = random_inputs(whole.inputs, 0)
    options = session_options(runtime, 1)
    options.enable_profiling = True
    options.profile_file_prefix = str(setting.scratch / "onnxruntime")
    model = to_onnx(whole.module, inputs, input_names=["images"]).SerializeToString()
    session = runtime.InferenceSession(model, options, providers=[backend.provider, "CPUExecutionProvider"])
    session.run(None, {"images": inputs[0].numpy()})
    runs: dict[str, Counter[str]] = {}
    with open(session.end_profiling(), encoding="utf-8") as file:  # noqa: PTH123 - the runtime's own file name
        for event in json.load(file):
            facts = event.get("args", {})
            if event.get("cat") == "Node" and "provider" in facts:
                runs.setdefault(facts["provider"], Counter())[facts.get("op_name", "unknown")] += 1
    return {provider: dict(counts) for provider, counts in runs.items()}
