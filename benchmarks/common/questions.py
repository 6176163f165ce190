"""All questions: each is a note in Markdown beside its kept answers, and a script that answers it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from benchmarks.common.answers import RESULTS, RETIRED, ROOT, Kept
from benchmarks.gpu import QUESTIONS

TOPICS = ("search", "latency", "training", "deploy", "kernels", "reliability")


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        note: Its Markdown file: the question as title, then the headline as a paragraph of one line, then notes.
        answers: The kept answers by date, of one day those with shorter names last; none while it is open.
    """

    note: Path
    answers: tuple[Kept, ...]

    @cached_property
    def _lines(self) -> list[str]:
        return self.note.read_text(encoding="utf-8").splitlines()

    @property
    def name(self) -> str:
        """How its answers' names begin."""
        return self.note.stem

    @property
    def topic(self) -> str:
        """The folder."""
        return self.note.parent.name

    @property
    def text(self) -> str:
        """The question."""
        return self._lines[0].removeprefix("# ")

    @property
    def headline(self) -> str:
        """The answer in one line."""
        return self._lines[2]

    @property
    def machine(self) -> str:
        """The CPU or GPU of the newest answer; empty while there is none."""
        return self.answers[-1].device if self.answers else ""

    @property
    def date(self) -> str:
        """The day of the newest answer; empty while there is none."""
        return self.answers[-1].date if self.answers else ""

    @property
    def script(self) -> str:
        """The file that answers it, relative to ``benchmarks/``; empty for a project's command or a retired script."""
        last = self.answers[-1].values["command"] if self.answers else ""
        old = re.search(r"(\w+)\.py|benchmarks\.[a-z]+\.(\w+)", last)
        stem = (old[1] or old[2]) if old else self.name.replace("-", "_")
        if stem == "gpu" or (not old and self.name in [question.name for question in QUESTIONS]):
            return "gpu.py"
        return next((f"{topic}/{stem}.py" for topic in TOPICS if (ROOT / topic / f"{stem}.py").is_file()), "")

    @property
    def command(self) -> str:
        """How to answer it again: for a retired question, how to see its script."""
        if self.script == "gpu.py":
            return f"python benchmarks/gpu.py --out answers --only {self.name}"
        last = self.answers[-1].values if self.answers else {"command": f"{Path(self.script).name} --help"}
        words = re.sub(r"^python ", "", last.get("profile_command") or last["command"])
        if not self.script and (script := re.match(r"benchmarks/\w+\.py", words)):
            return f"git show {last['commit']}:{script[0]}"
        words = words.replace("--pictures", "--images")
        words = re.sub(r"benchmarks/\S*?([\w.+-]+\.json)", lambda old: _moved(old[1]), words)
        module = f"python -m benchmarks.{self.script.removesuffix('.py').replace('/', '.')}"
        return re.sub(r"^(-m benchmarks\.[\w.]+|(benchmarks/)?\w+\.py)", module, words)


def _moved(name: str) -> str:
    """The place of a file that an old command names."""
    return next((path.relative_to(ROOT.parent).as_posix() for path in ROOT.rglob(name)), name)


def read_questions() -> Iterator[Question]:
    """All questions, topic by topic, the retired ones last.

    Raises:
        ValueError: an answer has no note.
    """
    for folder in (*(RESULTS / topic for topic in TOPICS), RETIRED):
        notes = sorted(folder.glob("*.md"))
        kept: dict[Path, list[Kept]] = {note: [] for note in notes}
        for path in folder.glob("*.json"):
            named = [note for note in notes if path.name.startswith(f"{note.stem}-")]
            if not named:
                raise ValueError(f"an answer has a note beside it, but got none for {path.name}")
            kept[max(named, key=lambda note: len(note.stem))].append(Kept(path))
        for note, answers in kept.items():
            yield Question(note, tuple(sorted(answers, key=lambda answer: (answer.date, -len(answer.path.name)))))


def table() -> str:
    """The questions as Markdown, for ``README.md``."""
    lines = []
    topic = ""
    for question in read_questions():
        if question.topic != topic:
            topic = question.topic
            lines += ["", f"### {topic.capitalize()}", "", "| question | answer | machine, date | script |"]
            lines += ["| --- | --- | --- | --- |"]
        link = f"[{question.text}]({question.note.relative_to(ROOT).as_posix()})"
        when = f"{question.machine}, {question.date}" if question.answers else "open"
        script = f"[`{question.script}`]({question.script})" if question.script else ""
        lines.append(f"| {link} | {question.headline} | {when} | {script} |")
    return "\n".join(lines).strip() + "\n"
