"""What the benchmarks share: turns, kills and paths of answers."""

import os
import sqlite3
import sys
import time
from pathlib import Path

import pytest

from benchmarks.common.answers import RESULTS, Kept, command, keep_answer
from benchmarks.common.kills import Survival, finished_trials, killed_process
from benchmarks.common.turns import interval, processor_ms, ratios, take_turns


def test_contenders_take_turns_in_random_order() -> None:
    order: list[str] = []

    def run(name: str) -> int:
        order.append(name)
        return len(order)

    found = take_turns({"a": lambda: run("a"), "b": lambda: run("b"), "c": lambda: run("c")}, 20)
    rounds = ["".join(order[start : start + 3]) for start in range(0, 60, 3)]
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert len(set(rounds)) > 3
    assert [order[number - 1] for number in found["b"]] == ["b"] * 20


def test_turns_end_with_their_time_but_not_before_the_least() -> None:
    assert take_turns({"a": lambda: 1}, 9, least=2, until=time.monotonic() - 1) == {"a": [1, 1]}
    assert take_turns({"a": lambda: 1}, 3, until=time.monotonic() + 60) == {"a": [1, 1, 1]}


def test_processor_time_leaves_out_waiting() -> None:
    def work() -> None:
        until = time.process_time() + 0.01
        while time.process_time() < until:
            pass

    def work_and_wait() -> None:
        work()
        time.sleep(0.05)

    found = processor_ms({"work": work, "wait": work_and_wait}, 3, at_least_s=0.02)
    assert all(10 <= ms < 40 for of_each in found.values() for ms in of_each)


def test_ratios_are_of_the_same_round() -> None:
    assert ratios([2.0, 9.0], [1.0, 3.0]) == [2.0, 3.0]
    assert interval([3.0, 1.0, 2.0]) == {"median": 2.0, "low": 1.0, "high": 3.0}
    with pytest.raises(ValueError, match="longer"):
        ratios([1.0], [1.0, 2.0])


def test_survival_counts_what_is_lost_and_what_changes() -> None:
    trials = Survival()
    trials.check({1: "a", 2: "b", 3: "c"})
    trials.check({1: "a", 2: "other", 4: "d"})
    trials.check({1: "a", 2: "other", 4: "d", 5: "e"})
    assert (trials.lost, trials.changed, len(trials.known)) == (1, 1, 4)


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # the fork
def test_a_process_is_killed_after_some_lines() -> None:
    def count(writing: int) -> None:
        for number in range(10_000):
            os.write(writing, f"{number}\n".encode())
            time.sleep(0.005)

    written, killed = killed_process(count, 3, 0.02)
    assert killed
    assert written[:3] == ["0", "1", "2"]
    assert len(written) < 1000


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # the fork
def test_a_process_may_end_before_it_is_killed() -> None:
    assert killed_process(lambda writing: os.write(writing, b"one\n"), 5, 0.1) == (["one"], False)
    with pytest.raises(RuntimeError, match="ended with status"):
        killed_process(lambda _: sys.exit(3), 1, 0.1)


def test_finished_trials_of_a_folder_without_a_study(tmp_path: Path) -> None:
    assert finished_trials(tmp_path) == {}
    sqlite3.connect(tmp_path / "study.db").close()
    assert finished_trials(tmp_path) == {}


def test_an_answer_lies_in_its_topic_and_names_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = RESULTS.parent / "kernels" / "operator_time.py"
    monkeypatch.setattr(sys, "argv", [str(script), "--rounds", "3", "--out", str(tmp_path / "runs")])
    assert command() == "python -m benchmarks.kernels.operator_time --rounds 3 --out runs"
    written: list[Path] = []
    monkeypatch.setattr("benchmarks.common.answers.write_answer", lambda path, _: written.append(path))
    keep_answer("operator-time", "Why?\n\nBecause.", {})
    assert written[0].parent == RESULTS / "kernels"
    assert written[0].name.startswith("operator-time-eager-fp32-")
    monkeypatch.undo()
    monkeypatch.setattr(sys, "argv", [str(RESULTS.parent / "gpu.py"), "--quick"])
    assert command() == "python benchmarks/gpu.py --quick"
    keep_answer(
        "any", "Why?\n\nBecause.", {"machine": {"device": "mine"}, "samples": [1, 2.5]}, out=tmp_path / "a.json"
    )
    kept = Kept(tmp_path / "a.json")
    assert (kept.device, kept.numbers(), kept.values["question"]) == ("mine", 2, "Why?")
    assert len(kept.values["commit"]) >= 40 or "unknown" in kept.values["commit"]
