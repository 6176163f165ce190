"""An answer is one JSON file: the raw numbers, the command, and the machine, versions, commit and date of it.

Nothing here needs torch: ``gpu.py`` and measurements of memory import it before they start their processes.
"""

import argparse
import json
import math
import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS, RETIRED = ROOT / "results", ROOT / "retired"


def argument_parser(doc: str | None) -> argparse.ArgumentParser:
    """The parser of a script whose docstring is its help."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def question_of(doc: str | None) -> str:
    """The question that a script answers: the first paragraph of its docstring, on one line."""
    return " ".join((doc or "").split("\n\n")[0].split())


def command() -> str:
    """The command of this process, without paths of this machine."""
    script = Path(sys.argv[0]).resolve()
    named = script.relative_to(ROOT.parent) if script.is_relative_to(ROOT) else Path(script.name)
    words = ["-m", ".".join(named.with_suffix("").parts)] if len(named.parts) > 2 else [str(named)]
    given = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    return shlex.join(["python", *words, *given])


def file_name(question: str, backend: str, precision: str, torch: str, device: str) -> str:
    """``<question>-<backend>-<precision>-<torch version>-<device>.json``."""
    machine = re.sub(r"[^a-z0-9]+", "_", device.lower()).strip("_")
    return f"{question}-{backend}-{precision}-{torch.replace('+', '_')}-{machine}.json"


def plain(value: Any) -> Any:
    """A value as JSON holds it: NaN becomes null, an infinity text, and floats keep 7 digits."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # NumPy's
        return plain(value.tolist())
    if isinstance(value, float):
        if math.isinf(value):
            return "infinite"
        return None if math.isnan(value) else float(f"{value:.7g}")
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def write_answer(path: Path, answer: Mapping[str, Any]) -> None:
    """Write an answer, with a line for every value and one for every row of a list of rows."""
    lines = []
    for key, value in plain(answer).items():
        rows = isinstance(value, list) and value and isinstance(value[0], dict)
        text = "[\n  " + ",\n  ".join(map(json.dumps, value)) + "\n ]" if rows else json.dumps(value)
        lines.append(f" {json.dumps(key)}: {text}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def keep_answer(
    name: str,
    doc: str | None,
    found: Mapping[str, Any],
    *,
    backend: str = "eager",
    precision: str = "fp32",
    out: Path | None = None,
) -> Path:
    """Write the answer of this process to ``results/<topic>/``, the topic being the folder of the script that runs.

    Args:
        name: First part of the file's name.
        doc: The script's docstring, which begins with the question.
        found: The answer; its values replace those from here, e.g. the command of a search that ran elsewhere.
        backend: Second part of the file's name.
        precision: Third part.
        out: The file, if it has another name.
    """
    from benchmarks.common.machine import provenance

    facts = {"question": question_of(doc), "command": command(), "date": datetime.now(UTC).date().isoformat()}
    answer = facts | provenance() | dict(found)
    topic = RESULTS / Path(sys.argv[0]).resolve().parent.name
    torch, device = answer["versions"]["torch"], answer["machine"]["device"]
    path = out or topic / file_name(name, backend, precision, torch, device)
    write_answer(path, answer)
    print(f"kept: {os.path.relpath(path)}")
    return path


@dataclass(frozen=True)
class Kept:
    """A kept answer, of any age.

    Attributes:
        path: Its file.
    """

    path: Path

    @cached_property
    def values(self) -> dict[str, Any]:
        """Its content."""
        values: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
        return values

    @property
    def date(self) -> str:
        """The day, in ISO form."""
        return str(self.values["date"])[:10]

    @property
    def device(self) -> str:
        """The CPU or GPU that the numbers are of."""
        machine = self.values["machine"]
        return str(machine.get("gpu") or machine.get("device") or self.values.get("device"))

    @property
    def torch(self) -> str:
        """The version of torch."""
        settings = self.values.get("settings", {})  # of a search
        versions = settings.get("versions", {}) | self.values.get("versions", {})
        return str(versions.get("torch") or self.values["torch"])

    def numbers(self) -> int:
        """How many measured numbers the answer holds."""
        return sum(1 for key, value in self.values.items() if key != "machine" for _ in _numbers(value))


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _numbers(item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value
