"""A search whose training runs run on a Ray cluster: run by ``test_search_ray.py``.

python search_ray_script.py FOLDER ADDRESS
"""

import sys
from pathlib import Path

import search_stub as stub
from ray_scorer import Searched

from smnas.scoring.workers.ray import RayWorkers
from smnas.search.context import SearchContext
from smnas.search.run import run_search
from smnas.search.study.settings import SearchSettings, StageTrials
from smnas.space.preset import load_space


def settings() -> SearchSettings:
    return stub.settings(trials=StageTrials(structural=20, modular=20), generation=4, final_epochs=0)  # type: ignore[no-any-return]


def main() -> None:
    with RayWorkers(Searched, sys.argv[2]) as pool:
        run_search(
            SearchContext(Path(sys.argv[1]), settings(), load_space("nano"), stub.StubLatency()),
            scorers=pool,
            complexity=stub.complexity,
        )


if __name__ == "__main__":
    main()
