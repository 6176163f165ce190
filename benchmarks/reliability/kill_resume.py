"""Does a search that is killed at random moments end as one that is not?

Runs the real ``smnas-search`` (real training, real latency table) twice with the same seed: once undisturbed, once
ended by SIGKILL at random moments and started again each time. Afterwards: no finished trial lost or repeated, and the
same front. Both runs read one latency table that is completed before, since a latency measured twice is two numbers.
With the epochs of the default the default strategy stops training runs after three and lets some of them go on.

    python -m benchmarks.reliability.kill_resume --out runs/kill-resume --kills 10 --keep
"""

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna

from benchmarks.common.answers import keep_answer
from smnas.data.shapes import generate_shapes

QUESTION = "Does a search that is killed at random moments end as one that is not?"

optuna.logging.set_verbosity(optuna.logging.WARNING)


def command(out: Path, data: Path, table: Path, trials: str, epochs: int) -> list[str]:
    return [
        *(sys.executable, "-m", "smnas", "search"),
        *("--data", str(data), "--preset", "nano", "--gpu", "cpu", "--trials", trials, "--epochs", str(epochs)),
        *("--final-epochs", "2", "--top", "1", "--table", str(table), "--seed", "3", "--out", str(out), "--quiet"),
    ]


def finished(run: Path) -> dict[int, tuple[object, ...]]:
    """Finished trials of a run: number to what they are."""
    if not (run / "study.db").exists():
        return {}
    (summary,) = optuna.get_all_study_summaries(f"sqlite:///{run / 'study.db'}") or (None,)
    if summary is None:
        return {}
    study = optuna.load_study(study_name=summary.study_name, storage=f"sqlite:///{run / 'study.db'}")
    return {
        trial.number: (
            trial.state.name,
            trial.user_attrs["architecture"],
            trial.user_attrs["stage"],
            trial.user_attrs["origin"],
            trial.user_attrs.get("stop_epoch"),
            tuple(trial.values or ()),
            str(trial.datetime_complete),
        )
        for trial in study.get_trials(deepcopy=False)
        if trial.state.is_finished()
    }


def without_time(trials: dict[int, tuple[object, ...]]) -> dict[int, tuple[object, ...]]:
    return {number: facts[:-1] for number, facts in trials.items()}


def front(run: Path) -> list[tuple[str, float, float]]:
    rows = json.loads((run / "ranking.json").read_text())["rows"]
    return sorted((row["architecture"], row["ap"], row["predicted_latency_ms"]) for row in rows if row["on_front"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--trials", default="3,3")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", action="store_true", help="keep the answer")
    settings = parser.parse_args()
    shutil.rmtree(settings.out, ignore_errors=True)
    settings.out.mkdir(parents=True)
    data, table = settings.out / "data", settings.out / "latency.db"
    generate_shapes(data, train=96, val=24, width=96, height=96)

    unkilled, killed = settings.out / "unkilled", settings.out / "killed"
    began = time.monotonic()
    ask = (data, table, settings.trials, settings.epochs)
    subprocess.run(command(unkilled, *ask), check=True, stdout=subprocess.DEVNULL)
    whole_s = time.monotonic() - began
    print(f"unkilled: {len(finished(unkilled))} trials in {whole_s:.0f} s", flush=True)

    rng = random.Random(settings.seed)
    kills, lost, changed = [], 0, 0
    seen: dict[int, tuple[object, ...]] = {}
    while True:
        process = subprocess.Popen(command(killed, *ask), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        after_s = rng.uniform(3.0, whole_s / 3) if len(kills) < settings.kills else None
        try:
            _, errors = process.communicate(timeout=after_s)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            now = finished(killed)
            lost += sum(number not in now for number in seen)
            changed += sum(now.get(number) != facts for number, facts in seen.items() if number in now)
            seen = now
            kills.append({"after_s": round(after_s or 0, 2), "finished_trials": len(now)})
            print(f"kill {len(kills)}: after {after_s:.1f} s, {len(now)} trials finished", flush=True)
            continue
        if process.returncode != 0:
            print(errors.decode(), file=sys.stderr)
            return 1
        if len(kills) >= settings.kills:
            break
        print("finished before the kill: starting the killed run over", flush=True)
        shutil.rmtree(killed)
        seen = {}
    now = finished(killed)
    lost += sum(number not in now for number in seen)
    changed += sum(now.get(number) != facts for number, facts in seen.items() if number in now)
    answer = {
        "unkilled_s": round(whole_s, 1),
        "kills": kills,
        "trials": len(now),
        "stopped": sum(facts[4] is not None for facts in now.values()),
        "went_on": sum(facts[3] == "promotion" for facts in now.values()),
        "finished_trials_lost": lost,
        "finished_trials_changed_or_repeated": changed,
        "same_trials_as_unkilled": without_time(now) == without_time(finished(unkilled)),
        "same_front_as_unkilled": front(killed) == front(unkilled),
        "front": front(killed),
    }
    print(json.dumps(answer, indent=1))
    if settings.keep:
        keep_answer("kill-resume", QUESTION, answer, backend="onnxruntime")
    good = not lost and not changed and answer["same_trials_as_unkilled"] and answer["same_front_as_unkilled"]
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
