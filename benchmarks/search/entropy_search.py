"""How many candidates a minute does the zero-shot search make and score, and what does it find?

Counts candidates a minute, made and scored with their budgets, in one thread; then runs the published search
(ResNet-50's seed, 18.8 G multiply-adds at 480x480, 91 layers, 100,000 steps) with generations of several sizes, the
published one child a step among them.

    OMP_NUM_THREADS=1 python -m benchmarks.search.entropy_search
"""

import time
from statistics import median

import numpy as np

from benchmarks.common.answers import argument_parser, keep_answer
from smnas.scoring.entropy import backbone_entropy
from smnas.scoring.entropy_population import entropy_of
from smnas.search.strategies.mae_det.maximum_entropy import Budget, EntropySearch, maximum_entropy_search
from smnas.space.architecture import parse_backbone
from smnas.space.convolutions import layers, multiply_adds
from smnas.space.families.super_blocks import MoveBounds, SuperBlockPopulation, SuperBlockSpec, mutate_super_blocks
from smnas.space.super_block_cost import population_cost

R50 = "k1kxk1_64_256b64k3r3-512b128k3r4-1024b256k3r6-2048b512k3r3"
BUDGET = Budget(multiply_adds=18.8e9, layers=91)
SIZE = (480, 480)


def seed() -> SuperBlockSpec:
    spec = parse_backbone(R50)
    if not isinstance(spec, SuperBlockSpec):
        raise TypeError(f"super-blocks are needed, got {spec}")
    return spec


def candidates_a_minute(count: int, at_once: int) -> float:
    """Children made by two moves, their entropy, multiply-adds, parameters and layers, in seconds of one core."""
    rng = np.random.default_rng(0)
    population = SuperBlockPopulation.copies(seed(), at_once)
    began = time.process_time()
    for _ in range(count // at_once):
        population, _ = mutate_super_blocks(population, MoveBounds(), rng)
        entropy_of(population)
        population_cost(population, SIZE)
    return 60 * (count // at_once) * at_once / (time.process_time() - began)


def search(generation: int, steps: int, seeds: int) -> dict[str, object]:
    best, seconds, winners, moved = [], [], [], []
    for number in range(seeds):
        began = time.process_time()
        found = maximum_entropy_search(
            seed(), EntropySearch(BUDGET, steps=steps, generation=generation), np.random.default_rng(number)
        )
        seconds.append(time.process_time() - began)
        chain = found.spec().convolutions()
        if abs(backbone_entropy(found.spec()) - found.entropy[0]) > 1e-9 or multiply_adds(chain, *SIZE) > 18.8e9:
            raise AssertionError("the search and the closed form of one backbone do not agree")
        best.append(float(found.entropy[0]))
        winners.append(
            {"backbone": str(found.spec()), "layers": layers(chain), "multiply_adds": multiply_adds(chain, *SIZE)}
        )
        moved.append(bool(found.moved[0].all()))
    return {
        "generation": generation,
        "steps": steps,
        "best": best,
        "cpu_seconds": seconds,
        "every_block_of_the_winner_moved": all(moved),
        "winners": winners,
    }


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--single", type=int, default=1, help="seeds of the published loop of one child a step; 0: none"
    )
    args = parser.parse_args()
    rates = [candidates_a_minute(200_000, 1000) for _ in range(5)]
    print(
        f"{median(rates):,.0f} candidates a minute made and scored on one core ({min(rates):,.0f} to {max(rates):,.0f})"
    )
    searches = []
    for generation, seeds in ((1, args.single), (64, args.seeds), (256, args.seeds), (1024, args.seeds)):
        if seeds:
            searches.append(search(generation, args.steps, seeds))
            row = searches[-1]
            print(f"generation {generation:5d}: best {row['best']}, {max(row['cpu_seconds']):.2f} s")  # type: ignore[call-overload]
    keep_answer(
        "entropy-search",
        __doc__,
        {"seed": R50, "candidates_a_minute": rates, "searches": searches},
    )


if __name__ == "__main__":
    main()
