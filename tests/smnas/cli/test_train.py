"""``smnas train``: where its weights start, norm and stem, and how it ends where it can not go on."""

import json
import re
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision
from narrow_space import narrowed

from smnas.cli.main import COMMANDS, application
from smnas.cli.terminal.exit_codes import run
from smnas.data.shapes import generate_shapes
from smnas.models.remapping import seed_state
from smnas.space.architecture import Architecture
from smnas.space.preset import load_space, space_toml
from smnas.supernet.training import load_supernet
from smnas.training.checkpoint import load_detector_checkpoint
from smnas.training.pretrained import read_pretrained

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
    start = seed_state(published.state_dict())
    for name, weight in detector.backbone.state_dict().items():
        if weight.ndim == 4:
            # fresh weights would be at a right angle to them
            assert torch.cosine_similarity(weight.flatten(), start[name].flatten(), dim=0) > 0.7, name
    # weights in half precision are weights, and others
    halves = {name: tensor.bfloat16() for name, tensor in published.state_dict().items()}
    torch.save(halves, tmp_path / "half.pth")
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
    common = ("--arch", ARCH, "--data", str(some_images), "--out", str(tmp_path / "out"), "--quiet")
    for words, rule in (
        (("--norm", "ln"), "--norm must be one of gn-ws, gn, bn, but got 'ln'"),
        (("--stem", "7x7"), "--stem must be one of deep, imagenet, but got '7x7'"),
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
        ({"format_version": 2}, ARCH, "holds something else"),
        ("resnet18", ARCH, "has basicblock and mobilenetv2_25 has inverted"),
        ("squeezenet1_0", ARCH, "those of a ResNet, ResNeXt or MobileNetV2"),
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


def no_network(*_: object, **__: object) -> None:
    raise URLError("no network")


def test_imagenet_weights_come_from_the_cache_or_one_line_names_file_and_folder(
    some_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("torch.hub.urlopen", no_network)
    common = ("--data", str(some_images), "--out", str(tmp_path / "out"), "--pretrained", "imagenet", "--quiet")
    assert command("--arch", ARCH, *common) == 2
    folder = tmp_path / "home" / "hub" / "checkpoints"
    rule = f"ImageNet weights are downloaded or lie in {folder}, but for mobilenet_v2-b0353104.pth got: "
    assert capsys.readouterr().err == f"error: {rule}<urlopen error no network>\n"
    assert command("--arch", ARCH.replace("mobilenetv2_25", "k1kxk1_8_8b8k3r1-16b8k3r1-24b8k3r1"), *common) == 2
    assert "those of ResNets, ResNeXts and MobileNetV2, but got k1kxk1_8" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    torch.save(torchvision.models.mobilenet_v2().state_dict(), folder / "mobilenet_v2-b0353104.pth")
    seed = read_pretrained("imagenet").seed(Architecture.parse(ARCH).backbone)
    assert (seed.name, seed.block) == ("mobilenet_v2-b0353104.pth", "inverted")


@pytest.mark.slow
def test_a_training_folder_gives_backbone_neck_and_heads(some_images: Path, tmp_path: Path) -> None:
    arch, first, second = (
        "basicblock_8_1-2-2+fpn_2-4_16+norpn+retina_16_1+64x64",
        tmp_path / "first",
        tmp_path / "second",
    )
    common = ("--data", str(some_images), "--epochs", "1", "--quiet")
    assert command("--arch", arch, "--out", str(first), *common) == 0
    recipe = tmp_path / "still.toml"
    recipe.write_text("epochs = 1\nbatch_size = 4\nlearning_rate = 1e-12\n")
    words = ("--arch", arch.replace("8_1-2-2", "8_1-21-2"), "--recipe", str(recipe), "--pretrained", str(first))
    assert command("--out", str(second), *common, *words) == 0
    (before, _), (after, info) = (load_detector_checkpoint(out / "checkpoint.pt") for out in (first, second))
    assert (info.norm, info.stem) == ("gn-ws", "deep")
    assert info.pretrained is not None
    assert re.fullmatch(r"basicblock_8_1-2-2.*, which gives \d\d% of the backbone's parameters", info.started_from)
    for name, weight in after.state_dict().items():
        source = name.replace("stage2.1.", "stage2.0.")
        if weight.ndim == 4 and weight.shape == before.state_dict()[source].shape:
            torch.testing.assert_close(weight, before.state_dict()[source], atol=1e-6, rtol=0)


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


@pytest.mark.slow
def test_metrics_are_of_held_out_images(some_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    others = generate_shapes(tmp_path / "others", train=1, val=2, seed=3)
    words = ("--arch", ARCH, "--data", str(some_images), "--epochs", "1", "--out", str(tmp_path / "out"), "--json")
    assert command(*words, "--test-data", str(others)) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["ap_split"] == "test"
    assert {"ap", "validation_ap"} <= set(document["metrics"])
    assert command(*words, "--test-data", str(tmp_path / "nowhere")) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.endswith(f"{tmp_path / 'nowhere'} is no folder")
    other = generate_shapes(tmp_path / "more", train=1, val=3, seed=4)
    assert command(*words, "--test-data", str(other)) == 2
    assert "3 test images instead of 2" in capsys.readouterr().err


@pytest.mark.slow
def test_shared_weights_of_a_space_are_trained_and_read(
    some_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preset = tmp_path / "own.toml"
    space = narrowed(
        load_space("nano"),
        "mbconv_8_8k3e3+fpn_2-2_16+norpn+retina_16_1+64x64",
        {"stages": (1,), "mbconv_widths": (8,), "mbconv_layers": 1},
        backbones=("mbconv_8_8k3e3",),
        necks=("fpn_2-2_16",),
        rpns=("norpn",),
        heads=("retina_16_1",),
        inputs=("64x64",),
    )
    preset.write_text(space_toml(space), encoding="utf-8")
    words = ("--supernet", str(preset), "--data", str(some_images), "--out", str(tmp_path / "shared"), "--epochs", "1")
    assert command(*words, "--json") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["supernet"] == load_supernet(tmp_path / "shared", space).label
    assert "epoch 1/1: loss" in captured.err
    for given, message in (
        ((*words, "--pretrained", "imagenet"), "--supernet goes without --pretrained"),
        ((*words, "--arch", ARCH), "--supernet goes without --arch"),
        ((*words, "--norm", "bn"), "gn-ws or gn, but got bn"),
        (words[2:], "--arch ARCH or --supernet PRESET, but got neither"),
    ):
        assert command(*given) == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_epochs_may_be_found_while_training(
    some_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--arch", ARCH, "--data", str(some_images), "--out", str(tmp_path / "out"), "--json", "--epochs")
    assert command(*words, "auto:3", "--evaluate-every", "1") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["epochs"] == 3
    assert document["stop_reason"] == "the limit of 3 epochs ended a training run whose AP still rose"
    assert load_detector_checkpoint(tmp_path / "out" / "checkpoint.pt")[1].stop_reason == document["stop_reason"]
    assert command(*words, "auto:x") == 2
    assert "--epochs must be a whole number, auto or auto:MOST, but got 'auto:x'" in capsys.readouterr().err
    assert command(*words, "3", "--time-limit", "1h") == 2
    assert "--time-limit goes with --epochs auto" in capsys.readouterr().err
