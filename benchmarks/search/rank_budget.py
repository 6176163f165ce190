"""How well does a short training run rank architectures, compared with a long one?

Trains the same architectures with several budgets and prints Kendall's tau between the AP of each short budget and the
AP of the longest, with a bootstrap interval over the architectures, and what each budget costs. Every training run
has a schedule of its own (a cosine that ends with its budget), as in a search. Interrupted, the same command resumes.

    python -m benchmarks.search.rank_budget --out runs/rank-budget --epochs 1,2,4 --long 12 --count 14
"""

import time
from pathlib import Path

import numpy as np
from scipy.stats import kendalltau

from benchmarks.common.answers import argument_parser, keep_answer
from benchmarks.common.training_runs import training_workers
from smnas.data.shapes import generate_shapes
from smnas.scoring.base import Score
from smnas.scoring.workers.processes import Job
from smnas.space.architecture import Architecture
from smnas.space.preset import load_space
from smnas.space.sampling import sample_modular, sample_structural
from smnas.training.recipe import load_recipe

RESAMPLES = 2000


def architectures(preset: str, count: int, seed: int) -> list[Architecture]:
    """The baseline, then random structures and random variants of random structures, in turns."""
    space = load_space(preset)
    rng = np.random.default_rng(seed)
    chosen = [space.baseline_architecture]
    while len(chosen) < count:
        structure = sample_structural(space, rng)
        candidate = structure if len(chosen) % 2 else sample_modular(space, structure, rng)
        if candidate not in chosen:
            chosen.append(candidate)
    return chosen


def tau_with_interval(short: np.ndarray, long: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Kendall's tau-b and the 95% interval of a bootstrap over architectures."""
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(RESAMPLES):
        rows = rng.integers(0, len(short), len(short))
        tau = kendalltau(short[rows], long[rows]).statistic
        if not np.isnan(tau):
            draws.append(tau)
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(kendalltau(short, long).statistic), float(low), float(high)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="COCO-format folder; generated images without it")
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--recipe", default="nano")
    parser.add_argument("--count", type=int, default=14, help="architectures")
    parser.add_argument("--epochs", default="1,2,4", help="short budgets")
    parser.add_argument("--long", type=int, default=12, help="the budget that counts as the truth")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    data = args.data or generate_shapes(args.out / "data")
    budgets = [*map(int, args.epochs.split(",")), args.long]
    candidates = architectures(args.preset, args.count, args.seed)
    # The long budget has a seed of its own: a short run that is the beginning of the long one would flatter itself.
    jobs = [
        Job(number, candidate, args.seed + (budget == args.long), budget, args.out / str(candidate) / str(budget))
        for number, (budget, candidate) in enumerate((b, c) for b in budgets for c in candidates)
    ]
    scores: dict[tuple[str, int], Score] = {}
    began = time.monotonic()
    with training_workers(data, load_recipe(args.recipe), args.workers) as pool:
        for done, (job, outcome) in enumerate(pool.score_all(jobs), start=1):
            what = f"{job.epochs} epochs of {job.architecture}"
            minutes = (time.monotonic() - began) / 60
            if isinstance(outcome, Score):
                scores[str(job.architecture), job.epochs] = outcome
                print(f"{done}/{len(jobs)} after {minutes:.1f} min: AP {outcome.value:.3f}  {what}", flush=True)
            else:
                print(f"{done}/{len(jobs)} failed: {outcome.reason}  {what}", flush=True)
    whole = [str(c) for c in candidates if all((str(c), budget) in scores for budget in budgets)]
    truth = np.array([scores[name, args.long].value for name in whole])
    rows = []
    for budget in budgets[:-1]:
        short = np.array([scores[name, budget].value for name in whole])
        tau, low, high = tau_with_interval(short, truth)
        seconds = sum(scores[name, budget].seconds for name in whole) / len(whole)
        best = whole[int(short.argmax())]
        rows.append(
            {
                "epochs": budget,
                "kendall_tau": tau,
                "interval_95": [low, high],
                "seconds_a_training": seconds,
                "ap_long_of_the_best": scores[best, args.long].value,
            }
        )
        print(f"{budget:3d} epochs: tau {tau:.2f} ({low:.2f} to {high:.2f}), {seconds:.0f} s a run")
    found = {
        "long_epochs": args.long,
        "best_ap_of_all": float(truth.max()),
        "budgets": rows,
        "ap": {name: {budget: scores[name, budget].value for budget in budgets} for name in whole},
    }
    keep_answer("rank-budget", __doc__, found)


if __name__ == "__main__":
    main()
