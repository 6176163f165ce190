"""The documentation says what is there: commands, folders, and code that runs."""

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

from smnas.cli.main import COMMANDS, application
from smnas.data.scene import draw_scene, render
from smnas.deploy.export import export_detector
from smnas.inference.video import VideoWriter
from smnas.models.build import build_detector
from smnas.space.architecture import Architecture
from smnas.space.preset import preset_names
from smnas.training.checkpoint import Checkpoint, CheckpointInfo, save_checkpoint
from smnas.training.recipe import load_recipe

REPOSITORY = Path(__file__).resolve().parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def _commands() -> list[list[str]]:
    """Every ``smnas ...`` line of the README's shell examples, as the words behind ``smnas``."""
    found = []
    for block in _blocks("bash"):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            if not words:
                continue
            program = words[0].rsplit("/", 1)[-1]
            if program == "smnas":
                found.append(words[1:])
            elif program.startswith("smnas-"):
                found.append([program.removeprefix("smnas-"), *words[1:]])
    return found


def test_every_command_is_in_the_table_and_has_an_example() -> None:
    table = re.findall(r"^\| `smnas (\w+)` \|", README, re.MULTILINE)
    assert table == list(COMMANDS)
    assert {words[0] for words in _commands()} == set(COMMANDS)


@pytest.mark.parametrize("words", _commands(), ids=" ".join)
def test_every_example_parses(words: list[str]) -> None:
    name, *arguments = words
    typer.main.get_command(application(name)).make_context(name, arguments)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the examples name: a detector of random weights, two images of shapes and a video."""
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
    with VideoWriter(folder / "clip.mp4", 10) as writer:
        for index in range(4):
            writer.write(some_images[index % 2], index / 10)
    return folder


@pytest.mark.parametrize("code", _blocks("python"))
def test_code_runs(code: str, files: Path) -> None:
    assert len(code.splitlines()) <= 14
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=files)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_architecture_strings_are_canonical() -> None:
    strings = re.findall(r"\b(?:basicblock|bottleneck|mobilenetv2|resnext)_\S+?\+\d+x\d+", README)
    assert len(set(strings)) >= 3
    for text in strings:
        assert str(Architecture.parse(text)) == text


def test_every_preset_is_named() -> None:
    assert [name for name in preset_names() if f"`{name}`" not in README] == []


def test_every_folder_is_explained() -> None:
    tops = ["kernels", "profiler", "smnas", "tests", "benchmarks"]
    inner = [f"smnas/{path.name}" for path in (REPOSITORY / "smnas").iterdir() if (path / "__init__.py").is_file()]
    assert [name for name in [*tops, *inner] if f"| `{name}/` |" not in README] == []


def test_every_make_target_that_the_documents_name_exists() -> None:
    contributing = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z]+)", README + contributing, re.MULTILINE))
    assert named <= targets
    assert {"quickstart", "test", "lint", "types", "contract", "clean"} <= targets
    gate = (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8")
    assert set(re.findall(r"^make ([a-z]+)", gate, re.MULTILINE)) == {"test", "lint", "types", "contract"}
