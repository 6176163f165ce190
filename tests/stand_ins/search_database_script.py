"""A search with four worker processes whose study is in a database: run by ``test_postgresql.py``.

python search_database_script.py FOLDER URL
"""

import sys
from pathlib import Path

import database_scorer
import search_stub as stub

from smnas.scoring.workers.processes import Workers
from smnas.search.study.settings import SearchSettings, StageTrials
from smnas.space.preset import load_space


def settings(storage: str | None) -> SearchSettings:
    return stub.settings(  # type: ignore[no-any-return]
        trials=StageTrials(structural=20, modular=20),
        generation=8,
        partial_order=False,
        final_epochs=0,
        storage=storage,
        study="four-workers",
    )


def main() -> None:
    # load torch, which no worker process needs: those import this module too
    from smnas.search.context import SearchContext
    from smnas.search.run import run_search

    with Workers(database_scorer.make, 4) as pool:
        run_search(
            SearchContext(Path(sys.argv[1]), settings(sys.argv[2]), load_space("nano"), stub.StubLatency()),
            scorers=pool,
            complexity=stub.complexity,
        )


if __name__ == "__main__":
    main()
