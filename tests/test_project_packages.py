"""The project as a whole: names, entry points, folders, and the tools that hold them together."""

import importlib
import os
import pkgutil
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import kernels
import profiler
import smnas
from profiler.errors import UserError
from smnas.cli.main import COMMANDS
from smnas.cli.terminal.exit_codes import check_package_names

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = (kernels, profiler, smnas)


def _modules() -> list[str]:
    return sorted(
        info.name for package in PACKAGES for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    )


def test_kernels_is_ours() -> None:
    assert Path(str(kernels.__file__)).resolve() == REPOSITORY / "kernels" / "__init__.py"
    check_package_names()


def test_a_foreign_kernels_package_is_named(tmp_path: Path) -> None:
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").touch()
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    code = "import sys; from smnas.cli.main import main; sys.argv = ['smnas', 'space']; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: the package `kernels` must be the one that smnas brings")
    assert "pip uninstall kernels" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", _modules())
def test_all_names_exist_and_are_listed_once(name: str) -> None:
    module = importlib.import_module(name)
    public = getattr(module, "__all__", None)
    if public is None:
        defined = [n for n, v in vars(module).items() if getattr(v, "__module__", None) == name and n[0] != "_"]
        assert defined == [], f"{name} defines public names but has no __all__"
        return
    assert len(set(public)) == len(public)
    assert [n for n in public if not hasattr(module, n)] == []


def test_user_errors_of_every_module_are_user_errors() -> None:
    for name in _modules():
        for value in vars(importlib.import_module(name)).values():
            if isinstance(value, type) and issubclass(value, Exception) and value.__module__ == name:
                assert issubclass(value, UserError | RuntimeError | LookupError), f"{name}.{value.__name__}"


def test_every_command_is_installed_under_its_own_name_too() -> None:
    scripts = {script.name: script.value for script in entry_points(group="console_scripts")}
    for name in COMMANDS:
        assert scripts[f"smnas-{name}"] == f"smnas.cli.main:{name}_main"
    assert scripts["smnas"] == "smnas.cli.main:main"


@pytest.mark.slow
def test_the_light_packages_load_no_torch() -> None:
    space = ", ".join(f"smnas.space.{name}" for name in ("preset", "sampling", "mutation", "partial_order"))
    names = f"{space}, profiler.errors, profiler.table.latency_table, profiler.prediction.predict, smnas.cli.main"
    code = f"import sys, {names}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_the_two_builds_of_onnxruntime_are_separate_extras() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = {name: " ".join(needs) for name, needs in project["optional-dependencies"].items()}
    assert "onnxruntime>" in extras["cpu"]
    assert "onnxruntime-gpu>" in extras["gpu"]
    assert not any("onnxruntime" in needs for needs in [*project["dependencies"], extras["dev"]])


def test_package_data_is_declared_for_every_kind_of_file_that_is_read() -> None:
    declared = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["*"]
    shipped = {
        path.suffix or path.name
        for package in PACKAGES
        for path in Path(package.__path__[0]).rglob("*")
        if path.is_file() and path.suffix not in {".py", ".pyc"}
    }
    assert {kind for kind in shipped if kind != ".typed"} <= {pattern.removeprefix("*") for pattern in declared}


def test_no_source_names_a_path_of_one_machine() -> None:
    suspicious = ("/" + "home/", "/" + "work/", "/" + "root/", "/" + "Users/")
    tracked = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True).stdout.split()
    if not tracked:
        pytest.skip("needs a git checkout to list the project's files")
    texts = [REPOSITORY / name for name in tracked if name.endswith((".py", ".md", ".toml", "Makefile", "run"))]
    found = [str(path) for path in texts if path.is_file() and any(s in path.read_text() for s in suspicious)]
    assert found == []
