"""Does a search that is killed at random moments end as one that is not?

Runs the real ``smnas-search`` (real training, real latency table) twice with the same seed: once undisturbed, once
ended by SIGKILL at random moments and started again each time. Afterwards: no finished trial lost or repeated, and the
same front. Both runs read one latency table that is completed before, since a latency measured twice is two numbers.
With the epochs of the default the default strategy stops training runs after three and resumes some of them.

    python -m benchmarks.reliability.kill_resume --out runs/kill-resume --kills 10 --keep
"""

import json
import random
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.common.answers import argument_parser, keep_answer
from benchmarks.common.kills import Survival, finished_trials
from smnas.data.shapes import generate_shapes
from smnas.search.study.candidate import Candidate
from smnas.search.study.optuna_study import read_candidates
from smnas.search.study.settings import read_settings


def candidates(run: Path) -> list[Candidate]:
    """All trials without their seconds, which differ from run to run."""
    return [replace(candidate, seconds=None) for candidate in read_candidates(run, read_settings(run))]


def front(run: Path) -> list[tuple[str, float, float]]:
    rows = json.loads((run / "ranking.json").read_text())["rows"]
    return sorted((row["architecture"], row["ap"], row["predicted_latency_ms"]) for row in rows if row["on_front"])


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--trials", default="3,3")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", action="store_true", help="keep the answer")
    args = parser.parse_args()
    shutil.rmtree(args.out, ignore_errors=True)
    args.out.mkdir(parents=True)
    data = generate_shapes(args.out / "data", train=96, val=24, width=96, height=96)
    command = [
        *(sys.executable, "-m", "smnas", "search", "--data", str(data), "--preset", "nano", "--gpu", "cpu"),
        *("--trials", args.trials, "--epochs", str(args.epochs), "--final-epochs", "2", "--top", "1", "--seed", "3"),
        *("--table", str(args.out / "latency.db"), "--quiet", "--out"),
    ]
    unkilled, killed = args.out / "unkilled", args.out / "killed"
    began = time.monotonic()
    subprocess.run([*command, str(unkilled)], check=True, stdout=subprocess.DEVNULL)
    whole_s = time.monotonic() - began
    print(f"unkilled: {len(finished_trials(unkilled))} trials in {whole_s:.0f} s", flush=True)

    rng = random.Random(args.seed)
    kills: list[dict[str, float]] = []
    trials = Survival()
    while True:
        after_s = rng.uniform(3.0, whole_s / 3) if len(kills) < args.kills else None
        try:
            subprocess.run([*command, str(killed)], check=True, stdout=subprocess.DEVNULL, timeout=after_s)
        except subprocess.TimeoutExpired:  # it was killed
            trials.check(finished_trials(killed))
            kills.append({"after_s": round(after_s or 0, 2), "finished_trials": len(trials.known)})
            print(f"kill {len(kills)}: after {after_s:.1f} s, {len(trials.known)} trials finished", flush=True)
            continue
        trials.check(finished_trials(killed))
        if len(kills) >= args.kills:
            break
        print("finished before the kill: starting the killed run over", flush=True)
        shutil.rmtree(killed)
        trials.known = {}
    now = candidates(killed)
    answer = {
        "unkilled_s": round(whole_s, 1),
        "kills": kills,
        "trials": len(now),
        "stopped": sum(trial.stop_epoch is not None for trial in now),
        "went_on": sum(trial.origin == "promotion" for trial in now),
        "finished_trials_lost": trials.lost,
        "finished_trials_changed_or_repeated": trials.changed,
        "same_trials_as_unkilled": now == candidates(unkilled),
        "same_front_as_unkilled": front(killed) == front(unkilled),
        "front": front(killed),
    }
    print(json.dumps(answer, indent=1))
    if args.keep:
        keep_answer("kill-resume", __doc__, answer, backend="onnxruntime")
    good = not (trials.lost or trials.changed) and answer["same_trials_as_unkilled"]
    return 0 if good and answer["same_front_as_unkilled"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
