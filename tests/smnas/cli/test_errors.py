"""The user's mistakes: each is one line on standard error, nothing on standard output, and exit code 2."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from profiler.errors import UserError
from smnas.cli.main import COMMANDS, application
from smnas.cli.terminal import exit_codes as run_module
from smnas.cli.terminal.exit_codes import run
from smnas.data.shapes import generate_shapes

ARCH = "basicblock_8_1-2-2+fpn_2-4_32+rpn+rcnn_64+96x96"
Case = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="session")
def some_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A correct data set of a few images."""
    root = tmp_path_factory.mktemp("data") / "images"
    generate_shapes(root, train=8, val=2, seed=0)
    return root


def _fails(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Run the command line; its one line of complaint."""
    capsys.readouterr()
    code = run(application(*COMMANDS), "smnas", list(words))
    captured = capsys.readouterr()
    assert code == 2, captured.err
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1, captured.err
    assert captured.err.startswith("error: ")
    return captured.err


@pytest.fixture
def refusal(
    some_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """Runs a command in an empty folder; its DATA is a correct data set and its OUT a folder that is not there."""
    monkeypatch.chdir(tmp_path)
    places = {"OUT": str(tmp_path / "out"), "DATA": str(some_images)}
    return lambda *words: _fails(capsys, *(places.get(word, word) for word in words))


def _broken(some_images: Path, root: Path, change: Case) -> Path:
    """A copy of the data set whose training annotations are changed."""
    root.mkdir()
    (root / "annotations").mkdir()
    for split in ("train", "val"):
        (root / split).symlink_to(some_images / split)
        source = some_images / "annotations" / f"instances_{split}.json"
        document = json.loads(source.read_text())
        if split == "train":
            change(document)
        (root / "annotations" / source.name).write_text(json.dumps(document))
    return root


def _set_box(*box: float) -> Case:
    def change(document: dict[str, Any]) -> None:
        document["annotations"][0]["bbox"] = list(box)

    return change


def _rename_image(document: dict[str, Any]) -> None:
    document["images"][0]["file_name"] = "nowhere.png"


def _unknown_category(document: dict[str, Any]) -> None:
    document["annotations"][0]["category_id"] = 999


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        pytest.param(_rename_image, "nowhere.png", id="missing image"),
        pytest.param(_set_box(-50, 5, 20, 20), "-50", id="outside, left"),
        pytest.param(_set_box(5, 5, 9000, 20), "9000", id="outside, right"),
        pytest.param(_set_box(5, 5, 0, 20), "0", id="zero width"),
        pytest.param(_set_box(5, 5, 20, 0), "0", id="zero height"),
        pytest.param(_set_box(math.nan, 5, 20, 20), "nan", id="NaN"),
        pytest.param(_unknown_category, "999", id="unknown category"),
    ],
)
def test_annotations_that_break_a_rule(
    change: Case, phrase: str, some_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = str(_broken(some_images, tmp_path / "broken", change))
    out = tmp_path / "out"
    assert phrase in _fails(capsys, "train", "--arch", ARCH, "--data", data, "--out", str(out)).lower()
    assert phrase in _fails(capsys, "search", "--data", data, "--out", str(out)).lower()
    assert not out.exists()  # a refused run leaves nothing behind


def test_bad_boxes_are_left_out_where_that_is_asked_for(
    some_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = _broken(some_images, tmp_path / "broken", _set_box(5, 5, 20, 0))
    words = ["--arch", ARCH, "--data", str(data), "--epochs", "1", "--out", str(tmp_path / "out")]
    assert "--drop-bad-boxes" in _fails(capsys, "train", *words)
    assert run(application("train"), "smnas-train", [*words, "--drop-bad-boxes"]) == 0
    assert f"left out 1 boxes of {data}" in capsys.readouterr().err


def test_a_damaged_validation_image_is_found_before_the_training(
    some_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(some_images, data)
    last = sorted((data / "val").iterdir())[-1]
    last.write_bytes(last.read_bytes()[:-600])
    assert last.name in _fails(capsys, "train", "--quiet", "--arch", ARCH, "--data", str(data), "--out", str(out))
    assert last.name in _fails(capsys, "search", "--quiet", "--data", str(data), "--gpu", "cpu", "--out", str(out))
    assert not out.exists()


def test_a_file_in_the_place_of_a_folder(some_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "file"
    place.touch()
    for out in (place, place / "inside"):
        words = ("--quiet", "--data", str(some_images), "--out", str(out))
        assert str(place) in _fails(capsys, "train", "--arch", ARCH, *words)
        assert str(place) in _fails(capsys, "search", "--gpu", "cpu", *words)


@pytest.mark.parametrize(
    ("words", "where"),
    [
        (("train", "--arch", ARCH, "--data", "DATA", "--epochs", "1", "--out", ""), "--out"),
        (("train", "--arch", ARCH, "--data", "DATA", "--epochs", "1", "--out="), "--out"),
        (("train", "--arch", ARCH, "--data", "", "--out", "OUT"), "--data"),
        (("search", "--data", "DATA", "--gpu", "cpu", "-o", ""), "-o"),
        (("export", "--model", "DATA", "--out", ""), "--out"),
        (("report", ""), "report"),
        (("detect", "--model", "DATA", "--out", "", "photo.jpg"), "--out"),
    ],
)
def test_an_empty_place_is_not_the_current_folder(
    words: tuple[str, ...], where: str, refusal: Callable[..., str], tmp_path: Path
) -> None:
    assert refusal(*words) == f"error: a value must not be empty, but got '' for {where}\n"
    assert not list(tmp_path.iterdir())


def test_a_search_that_is_refused_leaves_nothing_behind(
    some_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / "out"
    for words, phrase in (
        (("--warm-start", str(tmp_path / "no-run")), "no-run"),
        (("--table", str(tmp_path / "file" / "x.db")), "x.db"),
        (("--storage", "postgresql://me@127.0.0.1:1/studies"), "127.0.0.1"),
    ):
        assert phrase in _fails(
            capsys, "search", "-q", "--data", str(some_images), "--gpu", "cpu", "--out", str(out), *words
        )
        assert not out.exists()


def test_no_such_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing, out = str(tmp_path / "missing"), str(tmp_path / "out")
    assert "missing" in _fails(capsys, "search", "--data", missing, "--out", out)
    assert "missing" in _fails(capsys, "train", "--arch", ARCH, "--data", missing, "--out", out)
    assert "missing" in _fails(capsys, "report", missing)
    assert "missing" in _fails(capsys, "eval", "--model", missing, "--data", missing)
    assert "missing" in _fails(capsys, "export", "--model", missing, "--out", out)
    image = tmp_path / "image.png"
    image.touch()
    assert "missing" in _fails(capsys, "detect", "--model", missing, str(image))


@pytest.mark.parametrize(
    ("words", "known"),
    [
        (("space", "--preset", "huge"), "nano, small, paper"),
        (("space", "--describe", "resnet50"), "backbone+neck+rpn+head+WIDTHxHEIGHT"),
        (("space", "--describe", "basicblock_8_1-2-2+c4+norpn+retina_64+96x96"), "feature pyramid"),
        (("space", "--sample", "2", "--describe", ARCH), "exclude each other"),
        (("profile", "--gpu", "gtx9999", "--preset", "nano"), "gtx9999"),
        (("profile", "--gpu", "cpu", "--preset", "huge"), "nano, small, paper"),
        (("profile", "--gpu", "cpu", "--arch", "resnet50"), "backbone+neck+rpn+head+WIDTHxHEIGHT"),
        (("profile", "--gpu", "cpu", "--arch", ARCH, "--backend", "abacus"), "onnxruntime"),
        (("profile", "--gpu", "cpu", "--arch", ARCH, "--backend", "tensorrt"), "tensorrt"),
        (("profile", "--gpu", "cpu", "--arch", ARCH, "--precision", "int3"), "int3"),
        (("profile", "--gpu", "abacus", "--estimate", "--arch", ARCH), "abacus"),
        (("profile", "--gpu", "v100", "--arch", ARCH), "v100"),
        (("profile", "--gpu", "cpu", "--arch", ARCH, "--audit", "2"), "--audit"),
        (("profile", "--preset", "nano", "--arch", ARCH), "exclude each other"),
        (("profile", "--gpu", "cpu", "--sample", "2", "--arch", ARCH), "exclude each other"),
        (("profile", "--gpu", "cpu", "--threads", "100000", "--arch", ARCH), ", but got 100000"),
        (("search", "--preset", "huge", "--out", "OUT"), "nano, small, paper"),
        (("search", "--gpu", "gtx9999", "--out", "OUT"), "gtx9999"),
        (("search", "--scorer", "oracle", "--out", "OUT"), "oracle"),
        (("search", "--scorer", "bn-indicator", "--out", "OUT"), "bn-indicator"),
        (("search", "--scorer", "entropy", "--final-epochs", "0", "--out", "OUT"), "--final-epochs"),
        (("search", "--prior", "ap", "--out", "OUT"), "entropy-deepmad"),
        (("search", "--strategy", "guess", "--out", "OUT"), "guess"),
        (("search", "--trials", "ten", "--out", "OUT"), "--trials"),
        (("search", "--trials", "0,4", "--out", "OUT"), "--trials"),
        (("search", "--latency-ms", "0", "--out", "OUT"), "--latency-ms"),
        (("search", "--latency-ms", "inf", "--out", "OUT"), "--latency-ms"),
        (("search", "--seed", "4294967296", "--out", "OUT"), "--seed"),
        (("search",), "--out"),
        (("train", "--arch", ARCH, "--data", "DATA", "--recipe", "magic", "--out", "OUT"), "nano"),
        (("train", "--arch", "x+y", "--data", "DATA", "--out", "OUT"), "backbone+neck+rpn+head+WIDTHxHEIGHT"),
        (("train", "--arch", ARCH, "--data", "DATA", "--batch-size", "9", "--out", "OUT"), "images, 8, but"),
        (
            ("train", "-q", "--arch", ARCH, "--data", "DATA", "--out", "/proc/out"),
            "but got /proc/out",
        ),
        (("eval", "--model", "DATA", "--data", "DATA", "--batch", "0"), "(see smnas eval --help)"),
        (("sing",), "sing"),
        (("space", "--loud"), "--loud"),
        (("space", "--sample", "many"), "--sample"),
        (("space", "--sample", "-1"), "--sample"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_names_and_values_that_are_not_known(
    words: tuple[str, ...], known: str, refusal: Callable[..., str], tmp_path: Path
) -> None:
    assert known in refusal(*words)
    assert not (tmp_path / "out" / "settings.json").exists()


def test_a_table_that_is_not_sqlite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "table.db"
    table.write_text("median_ms,key\n1.0,a\n")
    assert "table.db" in _fails(capsys, "profile", "--gpu", "cpu", "--arch", ARCH, "--table", str(table))
    assert "table.db" in _fails(capsys, "search", "--gpu", "cpu", "--table", str(table), "--out", str(tmp_path / "o"))
    assert table.read_text().startswith("median_ms")


def test_a_run_folder_of_another_version(some_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "settings.json").write_text('{"format_version": 999}')
    assert "999" in _fails(capsys, "report", str(tmp_path))
    assert "999" in _fails(capsys, "search", "--data", str(some_images), "--gpu", "cpu", "--out", str(tmp_path))


def test_a_runtime_that_does_not_run_the_file(refusal: Callable[..., str], tmp_path: Path) -> None:
    for name in ("model.onnx", "model.pt", "a.png"):
        (tmp_path / name).touch()
    known = "a runtime is one of onnxruntime, openvino, litert, but got 'abacus'"
    assert known in refusal("eval", "--model", "model.onnx", "--data", "DATA", "--runtime", "abacus")
    assert known in refusal("detect", "--model", "model.onnx", "--runtime", "abacus", "a.png")
    assert "openvino runs .onnx files of `smnas export`, but got model.pt" in refusal(
        "detect", "--model", "model.pt", "--runtime", "openvino", "a.png"
    )
    assert "a device is chosen for --runtime openvino, but got 'npu'" in refusal(
        "eval", "--model", "model.onnx", "--data", "DATA", "--device", "npu"
    )
    words = ("export", "--model", "model.pt", "--runtime")
    assert "is onnxruntime or openvino, but got 'abacus'" in refusal(*words, "abacus", "--out", "m.onnx")
    engine = ("--format", "tensorrt-rtx", "--compute-capability", "8.9", "--out", "m.engine")
    assert "tensorrt-rtx engine is checked in onnxruntime alone, but got 'openvino'" in refusal(
        *words, "openvino", *engine
    )


@pytest.mark.parametrize("name", ["model.pt", "model.onnx", "model.jpg"])
def test_a_model_file_that_is_something_else(
    name: str, some_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / name
    model.write_bytes(b"not a model")
    image = str(next((some_images / "val").iterdir()))
    assert name in _fails(capsys, "eval", "--model", str(model), "--data", str(some_images))
    assert name in _fails(capsys, "detect", "--model", str(model), image)
    assert name in _fails(capsys, "export", "--model", str(model), "--out", str(tmp_path / "out.onnx"))


def _application(error: BaseException) -> typer.Typer:
    app = typer.Typer()

    @app.command()
    def fails() -> None:
        raise error

    return app


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("a rule,\nbut got x"), 2, "error: a rule, but got x"),
        (ZeroDivisionError("division\nby zero"), 1, "internal error: ZeroDivisionError: division by zero"),
        (RuntimeError(), 1, "internal error: RuntimeError"),
        (
            OSError(28, "No space left", "a.pt"),
            1,  # it ran out during the work
            "error: a file or folder must be usable, but a.pt is not: No space left",
        ),
        (OSError(13, "Denied", "a.pt"), 2, "error: a file or folder must be usable, but a.pt is not: Denied"),
        (OSError(5, "Input/output error"), 1, "internal error: OSError: [Errno 5] Input/output error"),
    ],
)
def test_exit_codes(error: Exception, code: int, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(_application(error), "smnas-space", []) == code
    assert capsys.readouterr() == ("", f"{line}\n")


def test_the_traceback_is_there_for_who_wants_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMNAS_TRACEBACK", "1")
    assert run(_application(ZeroDivisionError("by zero")), "smnas-space", []) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


@pytest.mark.parametrize("program", ["smnas-train", "smnas-search", "smnas-profile", "smnas-space"])
def test_interruption_says_how_to_go_on(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(_application(KeyboardInterrupt()), program, []) == 130
    line = capsys.readouterr().err
    assert ("the same command resumes" in line) == (program != "smnas-space")
    assert line.startswith("interrupted")


def test_interruption_names_the_subcommand_of_the_group(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "_invoke", interrupt)
    assert run(application(*COMMANDS), "smnas", ["search", "--out", "x"]) == 130
    assert "the same command resumes" in capsys.readouterr().err


@pytest.mark.slow
def test_control_c_in_a_real_training(some_images: Path, tmp_path: Path) -> None:
    words = ["train", "--arch", ARCH, "--data", str(some_images), "--epochs", "100000", "--out", str(tmp_path / "out")]
    process = subprocess.Popen(
        [sys.executable, "-m", "smnas.cli.main", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "out" / "checkpoint.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert out == ""
    assert err.splitlines()[-1] == "interrupted; the same command resumes where it stopped"
    assert "Traceback" not in err


@pytest.mark.slow
def test_a_reader_that_has_enough_is_no_error() -> None:
    read, write = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "smnas.cli.main", "space", "--sample", "20000"], stdout=write, stderr=subprocess.PIPE
    )
    os.close(write)
    assert os.read(read, 10)
    os.close(read)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, b"")


def _main(*words: str) -> list[str]:
    return [sys.executable, "-m", "smnas.cli.main", *words]


def test_help_that_nobody_reads_on_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(_main("search", "--help"), stdout=write, stderr=subprocess.PIPE, timeout=30)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.slow
def test_messages_that_nobody_reads_end_a_command_as_control_c_does(some_images: Path, tmp_path: Path) -> None:
    """``2>&1 | head -1``: nothing is done, so the exit code is not 0."""
    read, write = os.pipe()
    os.close(read)
    words = ("train", "--arch", ARCH, "--data", str(some_images), "--epochs", "1", "--out", str(tmp_path / "out"))
    done = subprocess.run(_main(*words), stdout=write, stderr=write, timeout=60)
    os.close(write)
    assert done.returncode == 130


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "code"), [(("space",), 0), (("space", "--json"), 0), (("space", "--preset", "x"), 2)]
)
def test_streams_that_are_closed_or_full_change_no_exit_code(words: tuple[str, ...], code: int) -> None:
    command = " ".join(map(str, _main(*words)))
    for streams in (">&- 2>&-", "2>&-", ">&-", "2>/dev/full"):
        done = subprocess.run(["sh", "-c", f"exec {command} {streams}"], capture_output=True, text=True, timeout=30)
        assert done.returncode == code, (streams, done.stderr)
        assert "internal error" not in done.stderr
        assert not done.stdout or streams != ">&-"
        assert code == 0 or done.stdout == "", "a mistake is never said among the results"


@pytest.mark.slow
def test_the_installed_scripts_exit_as_the_module_does(tmp_path: Path) -> None:
    script = Path(sys.executable).parent / "smnas-report"
    if not script.exists():
        pytest.skip("needs the console scripts of an installed project")
    done = subprocess.run([script, tmp_path / "missing"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)


def test_what_no_encoding_holds_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    app = typer.Typer()

    @app.command()
    def says() -> None:
        typer.echo(os.fsdecode(b"na\xefve.jpg"))

    assert run(app, "smnas-detect", []) == 0
    assert capsys.readouterr().out == "na\\udcefve.jpg\n"
