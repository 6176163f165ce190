"""A run folder in the documented format, written with optuna itself, and a browser that looks at a page."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
import pytest

from smnas.search.ranking.ranking import Ranking, RankingRow, write_ranking
from smnas.search.study.settings import DataFacts, SearchSettings, StageTrials, prepare_run_folder
from smnas.space.architecture import Architecture

PARENTS = (
    "basicblock_16_11-21-21+fpn_2-4_32+rpn+rcnn_64+160x128",
    "basicblock_16_1-2-2+fpn_3-5_32+norpn+retina_32_2+128x128",
)
BASELINE = "basicblock_16_11-21-21-21+fpn_2-6_64+rpn+rcnn_256+160x128"
WINNER = "basicblock_16_1-21-2+fpn_2-4_32+rpn+rcnn_128+160x128"
STATES = optuna.trial.TrialState


def add_trial(study: optuna.Study, state: STATES, values: tuple[float, float] | None, **attributes: object) -> None:
    attributes = {"seed": 0, "origin": "random", "parent": None, "epochs": 4, **attributes}
    if values is not None:
        latency = values[1]
        attributes = {
            "latency_ms": latency,
            "latency_low_ms": 0.94 * latency,
            "latency_high_ms": 1.07 * latency,
            "parameters": 1_200_000,
            "flops": 4.2e8,
            "seconds": 11.5,
            **attributes,
        }
    study.add_trial(
        optuna.trial.create_trial(state=state, values=None if values is None else list(values), user_attrs=attributes)
    )


def ranking_row(architecture: str, role: Literal["baseline", "candidate"], ap: float, **values: Any) -> RankingRow:
    row = RankingRow(
        rank=0,
        architecture=architecture,
        id=Architecture.parse(architecture).id,
        role=role,
        stage="final",
        on_front=role != "baseline",
        ap=ap,
        ap_std=None,
        ap_per_seed=(ap,),
        ap50=0.6,
        seeds=(0,),
        epochs=40,
        predicted_latency_ms=8.0,
        predicted_latency_low_ms=7.5,
        predicted_latency_high_ms=8.6,
        parameters=1_250_000,
        flops=410_000_000,
    )
    return replace(row, **values)


def settings(**values: Any) -> SearchSettings:
    return SearchSettings(
        smnas="0.1.0",
        preset="nano",
        data=DataFacts(root="fish <of> the sea", classes=("fish", "ray"), train_images=40, val_images=8),
        device="a processor",
        backend="onnxruntime",
        precision="fp32",
        recipe={"epochs": 4, "learning_rate": 0.02},
        epochs=4,
        scorer="trained-ap",
        trials=StageTrials(structural=12, modular=12),
        versions={"torch": "2.14.1", "onnxruntime": "1.32.0"},
        **values,
    )


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A finished search: a baseline, 12 structural and 12 modular trials, one failed, one pruned, a final phase."""
    folder = tmp_path / "run"
    prepare_run_folder(folder, settings())
    rng = np.random.default_rng(0)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.RDBStorage(f"sqlite:///{folder / 'study.db'}")
    study = optuna.create_study(study_name="smnas", storage=storage, directions=["maximize", "minimize"])
    add_trial(
        study, STATES.COMPLETE, (0.21, 12.0), architecture=BASELINE, stage="baseline", origin="baseline", epochs=4
    )
    for number in range(12):
        architecture = (
            PARENTS[number] if number < 2 else f"bottleneck_{8 + 2 * number}_1-2+fpn_2-4_32+rpn+rcnn_64+160x128"
        )
        latency = float(rng.uniform(4, 12))
        values = (0.05 + 0.015 * latency + float(rng.normal(0, 0.01)), latency)
        add_trial(
            study, STATES.COMPLETE, values, architecture=architecture, stage="structural", origin="random", epochs=4
        )
    add_trial(
        study,
        STATES.FAIL,
        None,
        architecture=PARENTS[0] + "0",
        stage="structural",
        reason="loss became NaN <at step 7>",
    )
    add_trial(
        study, STATES.PRUNED, None, architecture=PARENTS[1] + "0", stage="modular", reason="over the latency limit"
    )
    for number in range(12):
        architecture = WINNER if number == 0 else f"basicblock_{16 + 2 * number}_1-2+fpn_2-4_32+rpn+rcnn_64+160x128"
        latency = float(rng.uniform(3, 11))
        values = (0.08 + 0.015 * latency + float(rng.normal(0, 0.01)), latency)
        add_trial(
            study,
            STATES.COMPLETE,
            values,
            architecture=architecture,
            stage="modular",
            origin="mutation",
            parent=PARENTS[number % 2],
            epochs=4,
        )
    finals = ((WINNER, (0.33, 0.35), 7.0), (PARENTS[0], (0.30, 0.31), 8.4), (BASELINE, (0.31, 0.315), 12.0))
    for architecture, scores, latency in finals:
        for seed, ap in enumerate(scores):
            add_trial(
                study,
                STATES.COMPLETE,
                (ap, latency),
                architecture=architecture,
                stage="final",
                origin="ranking",
                epochs=40,
                seed=seed,
            )
            run = folder / "models" / architecture / f"seed-{seed}-epochs-40"
            run.mkdir(parents=True)
            lines = [
                json.dumps(
                    {
                        "epoch": epoch,
                        "loss": 3 / epoch + 0.1 * seed,
                        "losses": {"rpn": 0.1},
                        "ap": epoch / 200 if epoch % 10 == 0 else None,
                    }
                )
                for epoch in range(1, 41)
            ]
            (run / "curve.jsonl").write_text("\n".join(lines) + "\n")
    storage.engine.dispose()
    rows = (
        ranking_row(
            WINNER,
            "candidate",
            0.34,
            ap_std=0.0141,
            ap_per_seed=(0.33, 0.35),
            seeds=(0, 1),
            predicted_latency_ms=7.0,
            predicted_latency_low_ms=6.6,
            predicted_latency_high_ms=7.5,
            measured_latency_ms=7.12,
            measured_latency_low_ms=7.05,
            measured_latency_high_ms=7.2,
            exported_ap=0.352,
            exported_ap50=0.671,
        ),
        ranking_row(
            BASELINE,
            "baseline",
            0.3125,
            ap_std=0.0035,
            seeds=(0, 1),
            predicted_latency_ms=12.0,
            predicted_latency_low_ms=11.3,
            predicted_latency_high_ms=12.9,
            measured_latency_ms=12.4,
            measured_latency_low_ms=12.1,
            measured_latency_high_ms=12.6,
        ),
        ranking_row(PARENTS[0], "candidate", 0.305, ap_std=0.007, seeds=(0, 1), predicted_latency_ms=8.4),
    )
    write_ranking(folder, settings(), Ranking(rows, None, notes=("The smallest boxes of the data are 9 pixels wide.",)))
    return folder


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--allow-file-access-from-files",
    "--enable-logging=stderr",
    "--virtual-time-budget=6000",
    "--dump-dom",
)
LOOK = """onload = () => setTimeout(() => {
    const d = f.contentDocument, plots = [...d.querySelectorAll(".plot svg")];
    const asked = f.contentWindow.performance.getEntriesByType("resource").filter((r) => !r.name.startsWith("data:"));
    document.title = [d.documentElement.scrollWidth, d.querySelectorAll(".plot .main-svg").length,
        Math.max(...plots.map((s) => Math.round(s.getBoundingClientRect().right))), asked.length].join(" ");
}, 1500);"""


@dataclass(frozen=True)
class Seen:
    """A page in a browser: its whole width, its drawings, where the last one ends, and what it asked for and said."""

    scroll_width: int
    drawings: int
    right_edge: int
    requests: int
    console: list[str]


@pytest.fixture
def browse(tmp_path: Path) -> Callable[[Path, int], Seen]:
    """Open a file in Chromium, in a frame of a width: a headless window has a least width of its own."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium")

    def look(page: Path, width: int) -> Seen:
        frame = tmp_path / "frame.html"
        source = f"<iframe id=f src='{page.as_uri()}' width={width} height=3000 frameborder=0></iframe>"
        frame.write_text(f"{source}<script>{LOOK}</script>")
        command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", frame.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        title = re.search(r"<title>(\d+) (\d+) (\d+) (\d+)</title>", done.stdout)
        assert title is not None, done.stdout[:2000]
        return Seen(*map(int, title.groups()), [line for line in done.stderr.splitlines() if ":CONSOLE" in line])

    return look
