"""``smnas space``: counts, samples that every command takes, and descriptions that add up."""

import json
from pathlib import Path

import pytest

from smnas.cli.main import application
from smnas.cli.terminal.exit_codes import run
from smnas.space.architecture import Architecture
from smnas.space.preset import load_space, preset_names

RESNET18 = "basicblock_64_11-21-21-21+fpn_2-6_256+rpn+rcnn_1024+256x256"


def _space(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert run(application("space"), "smnas-space", list(words)) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("preset", preset_names())
def test_overview_holds_the_preset(preset: str, capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads(_space(capsys, "--preset", preset, "--json"))
    space = load_space(preset)
    assert document["preset"] == preset
    assert document["baseline"] == space.baseline
    assert document["structural_size"] == sum(1 for _ in space.structures)
    assert document["structural"]["heads"] == [str(head) for head in space.heads]
    text = _space(capsys, "--preset", preset)
    assert f"{document['structural_size']:,} architectures" in text
    assert space.baseline in text


def test_a_preset_as_toml_is_a_file_that_every_command_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "my-space.toml"
    file.write_text(_space(capsys, "--preset", "small", "--toml"), encoding="utf-8")
    assert load_space(str(file)) == load_space("small")
    overview = json.loads(_space(capsys, "--preset", str(file), "--json"))
    assert overview == json.loads(_space(capsys, "--preset", "small", "--json"))


def test_samples_are_architectures_of_the_space_and_depend_on_the_seed_alone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = _space(capsys, "--sample", "20", "--seed", "3").splitlines()
    assert len(lines) == 20
    space = load_space("nano")
    assert all(space.contains_structural(Architecture.parse(line)) for line in lines)
    document = json.loads(_space(capsys, "--sample", "20", "--seed", "3", "--json"))
    assert document["architectures"] == lines
    assert _space(capsys, "--sample", "20", "--seed", "4").splitlines() != lines


@pytest.mark.slow
def test_description_adds_up_and_knows_the_backbone(capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads(_space(capsys, "--describe", RESNET18, "--classes", "20", "--json"))
    assert document["architecture"] == RESNET18
    for total in ("parameters", "flops", "layers"):
        assert document[total] == sum(row[total] for row in document["workloads"])
    backbone = sum(row["parameters"] for row in document["workloads"] if row["name"].startswith("backbone"))
    # torchvision's ResNet-18 has 11.18 M parameters without its classifier; stem and projections differ a little
    assert backbone == pytest.approx(11_176_512, rel=0.02)
    text = _space(capsys, "--describe", RESNET18, "--classes", "20")
    assert f"{document['parameters']:,}" in text
    assert all(row["name"] in text for row in document["workloads"])
