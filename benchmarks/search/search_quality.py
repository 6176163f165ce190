"""How much hypervolume does each strategy reach with how many epochs?

Plays every strategy on problems that need no training: pymoo's functions and tables of trained detectors in ``data/``
(made by ``trained_table.py``). Counts epochs, not trials, and measures the noise-free hypervolume of completed runs as
a fraction of the best known one. ZDT3 and DTLZ2 were used while the strategies were written, ZDT1 and DTLZ7 were not;
all of them, and the tables, when the rung at a ninth was left out.

    python -m benchmarks.search.search_quality --seeds 10 --trials 60 --keep
"""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import kendalltau

from benchmarks.common.answers import argument_parser, keep_answer
from benchmarks.search.problems.analytic import NOISE, SPEED_SPREAD, AnalyticProblem
from benchmarks.search.problems.problem import Played, Problem, play, stops
from benchmarks.search.problems.tabulated import TabulatedProblem
from smnas.search.strategies.base import Strategy
from smnas.search.strategies.halving.halving import HalvingStage, halving
from smnas.search.strategies.nsga2 import nsga2
from smnas.search.strategies.random_search import random_search
from smnas.search.strategies.regularized_evolution import regularized_evolution
from smnas.search.strategies.sm_nas import sm_nas

FUNCTIONS = ("zdt3", "dtlz2", "zdt1", "dtlz7")
LONG = "-27-epochs"
ANALYTIC = (*FUNCTIONS, *(name + LONG for name in FUNCTIONS))
DATA = Path(__file__).parent / "data"
RESAMPLES = 2000
STRATEGIES = ("sm-nas", "halving", "surrogate", "nsga2", "regularized-evolution", "random")
MORE_RUNGS = "halving, a ninth too"  # where a ninth of the epochs is enough for a rung
MakeStrategy = Callable[[str, Problem, int], Strategy]


def make(name: str, problem: Problem, trials: int) -> Strategy:
    """A strategy as the command line would make it with half of the trials in each stage."""
    choices, half = problem.choices, trials // 2
    match name:
        case "sm-nas":
            return sm_nas(choices, structural_trials=half, modular_trials=trials - half)
        case "random":
            return random_search(choices, structural_trials=half, modular_trials=trials - half)
        case "nsga2":
            return nsga2(choices, trials)
        case "regularized-evolution":
            return regularized_evolution(choices, trials)
        case "surrogate":
            return halving(choices, trials, problem.epochs, latency=problem.latency_ms, stops=False)
        case _ if name == MORE_RUNGS:
            rungs = tuple(stops(problem.epochs))
            return Strategy(name, (HalvingStage(choices, trials, rungs, latency=problem.latency_ms),))
        case _:
            return halving(choices, trials, problem.epochs, latency=problem.latency_ms)


def budgets(problem: Problem, trials: int) -> list[int]:
    """Trial budgets to compare at: on a table a quarter and half of its rows, which random search then sees."""
    if not isinstance(problem, TabulatedProblem):
        return [trials]
    return sorted({min(trials, len(problem) // 4), min(trials, len(problem) // 2)})


def load(name: str) -> Problem:
    if (table := DATA / f"{name}.json").is_file():
        return TabulatedProblem(table)
    return AnalyticProblem(name.removesuffix(LONG), 27 if name.endswith(LONG) else 9)


def one(make_strategy: MakeStrategy, job: tuple[str, str, int, int]) -> Played:
    problem_name, strategy, trials, seed = job
    return play(lambda problem, count: make_strategy(strategy, problem, count), load(problem_name), trials, seed)


def mean_interval(values: np.ndarray, rng: np.random.Generator) -> list[float]:
    """Mean and its 95% bootstrap interval over the seeds."""
    means = values[rng.integers(len(values), size=(RESAMPLES, len(values)))].mean(axis=1)
    return [float(values.mean()), *map(float, np.percentile(means, [2.5, 97.5]))]


def first_epoch(played: Played, share: float) -> float:
    """Epochs until a share of the hypervolume is reached; infinite where it is not."""
    reached = np.flatnonzero(played.share >= share)
    return float(played.epochs[reached[0]]) if len(reached) else float("inf")


def compare(runs: dict[str, list[Played]], budget: int) -> dict[str, Any]:
    """Curves, and what each strategy needs of the budget to reach what NSGA-II and random reach at its end."""
    rng = np.random.default_rng(0)
    grid = [round(budget * part / 20) for part in range(1, 21)]
    answer: dict[str, Any] = {}
    finals = {name: np.array([played.share[-1] for played in of]) for name, of in runs.items()}
    for name, of in runs.items():
        at = np.array([[p.share[np.searchsorted(p.epochs, g, side="right") - 1] for g in grid] for p in of])
        row: dict[str, Any] = {
            "share_of_best_by_epochs": {str(g): mean_interval(at[:, i], rng) for i, g in enumerate(grid)},
            "final_share_per_seed": finals[name].tolist(),
            "designs": float(np.mean([p.designs for p in of])),
            "ms_a_proposal": float(1000 * np.mean([p.ask_seconds / p.asks for p in of])),
        }
        for other in ("nsga2", "random"):
            needed = [first_epoch(p, float(finals[other].mean())) / budget for p in of]
            row[f"budget_to_reach_{other}"] = {
                "median": _finite(float(np.median(needed))),
                "seeds_that_reach_it": int(np.isfinite(needed).sum()),
                "per_seed": [_finite(value) for value in needed],
            }
        answer[name] = row
    return answer


def _finite(value: float) -> float | None:
    return round(value, 4) if np.isfinite(value) else None


def foresight(problem: Problem, strategies: dict[str, Any], trials: int) -> dict[str, float] | None:
    """The part of the budget that an oracle needs to reach the final hypervolume of the others."""
    if not isinstance(problem, TabulatedProblem):
        return None
    shares = problem.with_foresight()
    ends = {name: float(np.mean(strategies[name]["final_share_per_seed"])) for name in ("nsga2", "random")}
    return {f"budget_to_reach_{name}": (int(np.argmax(shares >= end)) + 1) / trials for name, end in ends.items()}


def rank_correlations(problem: Problem) -> dict[str, float]:
    """Kendall's tau between the AP on every rung and the AP at the end without noise, over 300 random designs."""
    rng = np.random.default_rng(7)
    drawn = [problem.choices.random_variant(problem.choices.random_structure(rng), rng) for _ in range(300)]
    truth = [problem.true_ap(design) for design in drawn]
    return {
        str(epoch): float(kendalltau([problem.ap(design, epoch, 0) for design in drawn], truth).statistic)
        for epoch in stops(problem.epochs)
    }


def answer_for(
    name: str,
    trials: int,
    seeds: int,
    workers: int,
    make_strategy: MakeStrategy = make,
    compared: tuple[str, ...] = STRATEGIES,
) -> dict[str, Any]:
    """Everything that is kept about one problem and budget."""
    problem = load(name)
    compared = (*compared, MORE_RUNGS) if len(stops(problem.epochs)) > 2 else compared
    jobs = [(name, strategy, trials, seed) for strategy in compared for seed in range(seeds)]
    with ProcessPoolExecutor(workers) as pool:
        played = list(pool.map(partial(one, make_strategy), jobs))
    runs = {s: [p for p, job in zip(played, jobs, strict=True) if job[1] == s] for s in compared}
    strategies = compare(runs, trials * problem.epochs)
    return {
        "problem": name,
        "trials": trials,
        "epochs_a_training": problem.epochs,
        "seeds": seeds,
        "rank_correlations": rank_correlations(problem),
        "learning_curves": {"speed_spread": SPEED_SPREAD, "noise": NOISE}
        if isinstance(problem, AnalyticProblem)
        else None,
        "foresight": foresight(problem, strategies, trials),
        "strategies": strategies,
    }


def show(answer: dict[str, Any]) -> None:
    print(f"{answer['problem']}, {answer['trials']} training runs: rank correlations {answer['rank_correlations']}")
    if answer["foresight"] is not None:
        print(f"  an oracle needs {answer['foresight']}")
    for strategy, row in answer["strategies"].items():
        mean, low, high = list(row["share_of_best_by_epochs"].values())[-1]
        halves = list(row["share_of_best_by_epochs"].values())[9][0]
        print(
            f"  {strategy:22s} final {mean:.3f} ({low:.3f} to {high:.3f}), half way {halves:.3f}, "
            f"reaches nsga2 after {row['budget_to_reach_nsga2']['median']} "
            f"and random after {row['budget_to_reach_random']['median']} of the budget, "
            f"{row['designs']:.0f} designs, {row['ms_a_proposal']:.1f} ms a proposal",
            flush=True,
        )


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--problems", default="", help="names, joined by commas; all of them without it")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--trials", type=int, default=60, help="completed training runs, baseline aside")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--keep", action="store_true", help="keep an answer for each problem")
    args = parser.parse_args()
    tables = sorted(path.stem for path in DATA.glob("*.json"))
    for name in args.problems.split(",") if args.problems else (*ANALYTIC, *tables):
        for trials in budgets(load(name), args.trials):
            answer = answer_for(name, trials, args.seeds, args.workers)
            if args.keep:
                keep_answer(f"search-quality-{name}" + (f"-{trials}" if name in tables else ""), __doc__, answer)
            show(answer)


if __name__ == "__main__":
    main()
