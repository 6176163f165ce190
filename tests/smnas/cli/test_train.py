"""``smnas train``: where its weights start, norm and stem, and how it ends where it can not go on."""

import json
import re
from pathlib import Path

import pytest
import torch
import torchvision

from smnas.cli.main import COMMANDS, application
from smnas.cli.terminal.exit_codes import run
from smnas.data.shapes import generate_shapes
from smnas.models.pretrained import torchvision_names
from smnas.training.checkpoint import load_detector_checkpoint

ARCH = "mobilenetv2_25+fpn_3-4_16+rpn+rcnn_16+64x64"


@pytest.fixture(scope="module")
def some_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate_shapes(tmp_path_factory.mktemp("data") / "images", train=4, val=2, seed=0)


def command(*words: str) -> int:
    return run(application(*COMMANDS), "smnas", ["train", *words])


@pytest.mark.slow
def test_training_starts_from_the_weights_and_the_checkpoint_knows_its_norm_and_stem(
    some_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    published = torchvision.models.mobilenet_v2(width_mult=0.25)
    torch.save(published.state_dict(), tmp_path / "weights.pth")
    out = tmp_path / "out"
    words = ("--arch", ARCH, "--data", str(some_images), "--epochs", "1", "--out", str(out), "--json")
    assert command(*words, "--pretrained", str(tmp_path / "weights.pth")) == 0
    assert "ap" in json.loads(capsys.readouterr().out)["metrics"]
    detector, info = load_detector_checkpoint(out / "checkpoint.pt")
    assert (info.norm, info.stem) == ("bn", "imagenet")
    trained, start = detector.backbone.state_dict(), published.state_dict()
    for name, source in torchvision_names(detector.backbone).items():
        if start[source].ndim == 4:
            # fresh weights would be at a right angle to them
            assert torch.cosine_similarity(trained[name].flatten(), start[source].flatten(), dim=0) > 0.7, name
    # weights in half precision are weights, and others
    torch.save({name: tensor.bfloat16() for name, tensor in start.items()}, tmp_path / "half.pth")
    assert command(*words, "--pretrained", str(tmp_path / "half.pth")) == 2
    assert "trained with pretrained=" in capsys.readouterr().err
    # without the weights it is another run: GroupNorm and another stem
    assert command(*words) == 2
    assert "norm=bn, but got gn-ws" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "kinds"),
    [
        ((), ("gn-ws", "deep")),
        (("--norm", "bn"), ("bn", "deep")),
        (("--stem", "imagenet"), ("gn-ws", "imagenet")),
        (("--norm", "bn", "--stem", "imagenet"), ("bn", "imagenet")),
    ],
)
def test_norm_and_stem_can_be_chosen_from_scratch(
    words: tuple[str, ...], kinds: tuple[str, str], some_images: Path, tmp_path: Path
) -> None:
    arch = "basicblock_8_1-2-2+fpn_2-4_16+norpn+retina_16_1+64x64"
    common = ("--arch", arch, "--data", str(some_images), "--epochs", "1", "--out", str(tmp_path / "out"), "--quiet")
    assert command(*common, *words) == 0
    detector, info = load_detector_checkpoint(tmp_path / "out" / "checkpoint.pt")
    assert (info.norm, info.stem) == kinds
    batch_norms = sum(isinstance(module, torch.nn.BatchNorm2d) for module in detector.modules())
    assert (batch_norms > 0) == (kinds[0] == "bn")
    assert detector.backbone.state_dict()["stem.conv.weight"].shape[-1] == (7 if kinds[1] == "imagenet" else 3)


def test_norm_and_stem_are_refused_where_they_do_not_fit(
    some_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(torchvision.models.mobilenet_v2(width_mult=0.25).state_dict(), tmp_path / "weights.pth")
    common = ("--arch", ARCH, "--data", str(some_images), "--out", str(tmp_path / "out"), "--quiet")
    for words, rule in (
        (("--norm", "ln"), "--norm must be one of gn-ws, bn, but got 'ln'"),
        (("--stem", "7x7"), "--stem must be one of deep, imagenet, but got '7x7'"),
        (
            ("--norm", "gn-ws", "--pretrained", str(tmp_path / "weights.pth")),
            "ImageNet weights go with the norm bn and the stem imagenet, but got gn-ws and imagenet",
        ),
    ):
        assert command(*common, *words) == 2
        assert capsys.readouterr().err == f"error: {rule}\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "arch", "phrase"),
    [
        (None, ARCH, "there is no file"),
        (b"not a file of tensors", ARCH, "damaged or something else"),
        ([1, 2], ARCH, "holds something else"),
        ({"epoch": 3}, ARCH, "holds something else"),
        ("resnet18", ARCH, "features.0.0.weight is missing for mobilenetv2_25"),
        ("mobilenet_v2", ARCH, "features.0.0.weight must have shape (8, 3, 3, 3)"),
        ("resnet18", ARCH.replace("mobilenetv2_25", "inverted_64_11-21-21-21"), "layer1.0.conv.0.0.weight is missing"),
        ("resnet34", ARCH.replace("mobilenetv2_25", "basicblock_64_11-21-21-21"), "layer1.2.conv1.weight has no place"),
    ],
)
def test_other_files_and_other_networks_are_refused_in_one_line(
    content: object, arch: str, phrase: str, some_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "weights.pth", tmp_path / "out"
    match content:
        case bytes():
            path.write_bytes(content)
        case str():
            torch.save(torchvision.models.get_model(content).state_dict(), path)
        case list() | dict():
            torch.save(content, path)
    assert (
        command("--arch", arch, "--data", str(some_images), "--out", str(out), "--pretrained", str(path), "--quiet")
        == 2
    )
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert phrase in captured.err
    assert not out.exists()


@pytest.mark.slow
def test_a_training_that_diverges_is_one_line_and_no_bug(
    some_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, out = tmp_path / "wild.toml", tmp_path / "out"
    recipe.write_text("epochs = 2\nbatch_size = 2\nlearning_rate = 1e30\n")
    words = ("--arch", ARCH, "--data", str(some_images), "--recipe", str(recipe), "--out", str(out), "--quiet")
    assert command(*words) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(r"error: the training failed: the loss is not finite in step \d: .*\n", captured.err)
    assert json.loads((out / "failure.json").read_text())["kind"] == "diverged"
