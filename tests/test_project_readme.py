"""The documentation says what is there: commands, folders, figures, links, and code that runs."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import typer.main
from PIL import Image

import smnas
from profiler.timing.measurement import TimingSettings
from smnas.cli.main import COMMANDS, application
from smnas.data.scene import draw_scene, render
from smnas.data.shapes import generate_shapes
from smnas.deploy.export import export_detector
from smnas.inference.video import VideoWriter
from smnas.models.build import build_detector
from smnas.search.strategies.by_name import STRATEGIES
from smnas.space.architecture import Architecture
from smnas.space.preset import preset_names
from smnas.training.checkpoint import Checkpoint, CheckpointInfo, save_checkpoint
from smnas.training.recipe import load_recipe, recipe_names

REPOSITORY = Path(__file__).resolve().parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
PAGES = {path: path.read_text(encoding="utf-8") for path in sorted((REPOSITORY / "docs").rglob("*.md"))}
DOCUMENTS = {REPOSITORY / "README.md": README, REPOSITORY / "CONTRIBUTING.md": CONTRIBUTING, **PAGES}
EVERYTHING = "\n".join(DOCUMENTS.values())
COMMAND_TABLE = re.compile(r"^\| `smnas (\w+)` \| .*$", re.MULTILINE)


# Instead of a search, which would take an hour, and of a device that is elsewhere: their arguments are checked.
FINISHED_SEARCH = """
import inspect, smnas.api
arguments = inspect.signature(smnas.api.search)
smnas.api.search = lambda *given, **named: smnas.api.SearchRun(arguments.bind(*given, **named).arguments["out"])
"""
FINISHED_RANKING = """
import inspect, smnas.api
ranked = inspect.signature(smnas.api.rank)
smnas.api.rank = lambda *given, **named: ranked.bind(*given, **named) and smnas.api.SearchRun("my-run")
"""


def _blocks(language: str, text: str = EVERYTHING) -> list[str]:
    return list(dict.fromkeys(re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)))


def _commands() -> list[list[str]]:
    """Every ``smnas ...`` line of the shell examples, as the words after ``smnas``."""
    found: dict[str, list[str]] = {}
    for block in _blocks("bash"):
        for line in block.splitlines():
            words = shlex.split(line.partition(" > ")[0], comments=True)
            if not words:
                continue
            program = words[0].rsplit("/", 1)[-1]
            if program == "smnas":
                found[line] = words[1:]
            elif program.startswith("smnas-"):
                found[line] = [program.removeprefix("smnas-"), *words[1:]]
    return list(found.values())


def test_the_readme_is_one_read() -> None:
    assert len(README.splitlines()) <= 150


def test_every_command_is_in_the_table_and_has_an_example() -> None:
    assert COMMAND_TABLE.findall(README) == list(COMMANDS)
    table = [match[0] for match in COMMAND_TABLE.finditer(README)]
    assert [match[0] for match in COMMAND_TABLE.finditer(PAGES[REPOSITORY / "docs" / "commands.md"])] == table
    assert {words[0] for words in _commands()} == set(COMMANDS)


@pytest.mark.parametrize("words", _commands(), ids=" ".join)
def test_every_example_parses(words: list[str]) -> None:
    name, *arguments = words
    typer.main.get_command(application(name)).make_context(name, arguments)


@pytest.mark.parametrize("option", sorted(set(re.findall(r"`(--[a-z][a-z-]+)", EVERYTHING))))
def test_every_option_that_is_named_exists(option: str) -> None:
    foreign = {"--extra-index-url", "--standalone", "--nproc-per-node", "--help"}
    known = {
        spelling
        for name in COMMANDS
        for command in [typer.main.get_command(application(name))]
        for leaf in [command, *getattr(command, "commands", {}).values()]
        for parameter in leaf.params
        for spelling in [*parameter.opts, *parameter.secondary_opts]
    }
    assert option in known | foreign


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the examples name: a detector of random weights, images, a video and a short search."""
    folder = tmp_path_factory.mktemp("readme")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        detector = build_detector(Architecture.parse("basicblock_8_1-1-2+fpn_3-4_16+norpn+retina_16_1+64x64"), 3)
    detector.head.logits.bias.data.add_(5.0)  # type: ignore[union-attr, operator]  # a fresh head is sure of nothing
    names, recipe = ("circle", "square", "star"), load_recipe("nano")
    info = CheckpointInfo(str(detector.architecture), names, (1, 2, 3), "gn-ws", "deep", recipe, 0, 1, 1)
    save_checkpoint(folder / "checkpoint.pt", Checkpoint(info, detector.state_dict()))
    export_detector(folder / "checkpoint.pt", folder / "model.onnx")
    rng = np.random.default_rng(0)
    some_images = [Image.fromarray(render(draw_scene(96, 64, rng), rng)[0]) for _ in range(2)]
    for name, image in zip(("one.jpg", "two.jpg"), some_images, strict=True):
        image.save(folder / name)
    generate_shapes(folder / "my-images", train=4, val=2, width=64, height=64)
    quick = TimingSettings(relative_half_width=0.5, min_samples=3, max_samples=5, time_limit_s=0.2, warmup_s=0.0)
    smnas.search(
        folder / "my-run", folder / "my-images", device="cpu", backend="eager", strategy="random", trials=(1, 0),
        epochs=1, final_epochs=0, top=1, workers=1, calibration=0, timing=quick, deploy=False,
    )  # fmt: skip
    with VideoWriter(folder / "clip.mp4", 10) as writer:
        for index in range(4):
            writer.write(some_images[index % 2], index / 10)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("code", _blocks("python"))
def test_code_runs(code: str, files: Path) -> None:
    assert len(code.splitlines()) <= 14
    searched = FINISHED_SEARCH if "smnas.search(" in code else FINISHED_RANKING if "smnas.rank(" in code else ""
    done = subprocess.run([sys.executable, "-c", searched + code], capture_output=True, text=True, cwd=files)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_architecture_strings_are_canonical() -> None:
    strings = set(re.findall(r"\b(?:basicblock|bottleneck|inverted|mobilenetv2|resnext)_\S+?\+\d+x\d+", EVERYTHING))
    assert len(strings) >= 6
    for text in strings:
        assert str(Architecture.parse(text)) == text


def test_every_preset_recipe_and_strategy_is_named() -> None:
    pages = {name: PAGES[REPOSITORY / "docs" / f"{name}.md"] for name in ("architectures", "training", "search")}
    assert [name for name in preset_names() if f"`{name}`" not in README + pages["architectures"]] == []
    assert [name for name in recipe_names() if f"`{name}`" not in pages["training"]] == []
    assert [name for name in STRATEGIES if f"`{name}`" not in pages["search"]] == []


def test_every_folder_is_explained() -> None:
    tops = ["kernels", "profiler", "smnas", "tests", "docs", "benchmarks"]
    inner = [f"smnas/{path.name}" for path in (REPOSITORY / "smnas").iterdir() if (path / "__init__.py").is_file()]
    assert [name for name in [*tops, *inner] if f"| `{name}/` |" not in CONTRIBUTING] == []


def test_links_lead_to_files_and_headings() -> None:
    for document, text in DOCUMENTS.items():
        for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
            target, _, heading = link.partition("#")
            path = document if not target else document.parent / target
            assert path.is_file(), f"{document.name}: {link}"
            headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE) if heading else []
            slugs = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in headings]
            assert not heading or heading in slugs, f"{document.name}: {link}"


def _kept(question: str) -> Path:
    name = re.compile(rf"{question}-[a-z_]+-[a-z0-9]+-\d[^/]*\.json")
    (path,) = (path for path in (REPOSITORY / "benchmarks" / "results").rglob("*.json") if name.fullmatch(path.name))
    return path


@pytest.mark.parametrize("document", ["README.md", "docs/latency.md"])
def test_figures_of_predictions_are_the_kept_ones(document: str) -> None:
    rows = re.findall(r"^\| .*(?=`audit-).*$", (REPOSITORY / document).read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) == 3
    for row in rows:
        (question,) = re.findall(r"`(audit-[a-z0-9-]+)`", row)
        accuracy = json.loads(_kept(question).read_text(encoding="utf-8"))["audit"]["accuracy"]
        cells = [cell.strip() for cell in row.strip("|").split("|")][1:-1]
        own = accuracy["prediction"]
        expected = [str(own["count"]), f"{own['mape']:.1%}", f"{own['within_5']:.0%}", f"{own['within_10']:.0%}"]
        assert cells[:4] == expected
        assert float(cells[4]) == pytest.approx(own["spearman"], abs=6e-4)
        assert cells[-1] == f"{accuracy['FLOPs']['mape']:.1%}"


def test_figures_of_searches_are_the_kept_ones() -> None:
    lines = README.splitlines()
    for number, line in enumerate(lines):
        if not (found := re.search(r"\| baseline \| (.*?) \| (.*?) ms \| `([a-z0-9-]+)` \|", line)):
            continue
        answer = json.loads(_kept(found[3]).read_text(encoding="utf-8"))
        ranking = {row["architecture"]: row for row in answer["ranking"]}
        (baseline,) = (row for row in answer["ranking"] if row["role"] == "baseline")
        recommended = ranking[answer["recommendation"]["architecture"]]
        assert f"`{recommended['architecture']}`" in lines[number + 1]
        for text, row in ((line, baseline), (lines[number + 1], recommended)):
            ap, milliseconds = (cell.strip() for cell in text.replace("**", "").split("|")[3:5])
            assert float(ap.split(" ± ")[0]) == pytest.approx(row["ap"], abs=5e-4)
            if " ± " in ap:
                assert float(ap.split(" ± ")[1]) == pytest.approx(row["ap_std"], abs=5e-4)
            assert float(milliseconds.removesuffix(" ms")) == pytest.approx(row["measured_latency_ms"], rel=0.01)


def test_every_kept_answer_that_is_named_exists() -> None:
    known = {path.name for path in (REPOSITORY / "benchmarks" / "results").rglob("*.json")}
    cells = re.findall(r"\| `([a-z]+-[a-z0-9-]+)` \|$", EVERYTHING, re.MULTILINE)
    assert len(cells) >= 6
    assert [name for name in cells if not any(file.startswith(f"{name}-") for file in known)] == []


def test_every_make_target_that_the_documents_name_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", EVERYTHING, re.MULTILINE))
    assert named <= targets
    assert {"quickstart", "test", "lint", "types", "contract", "docs", "clean"} <= targets
    gate = (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8")
    assert {"test", "lint", "types", "contract", "docs"} <= set(re.findall(r"^make ([a-z-]+)", gate, re.MULTILINE))
