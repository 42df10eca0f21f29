"""What is built for users holds the package, and nothing else of the repository."""

import tarfile
import zipfile

import pytest
from helpers import ROOT

import auxnas_layers

wheel = pytest.importorskip("hatchling.builders.wheel", reason="hatchling builds the wheel")
sdist = pytest.importorskip("hatchling.builders.sdist")


def built(builder, folder):
    (path,) = builder(str(ROOT)).build(directory=str(folder), versions=["standard"])
    return path


def test_a_wheel_holds_the_package_and_its_licence_alone(tmp_path):
    with zipfile.ZipFile(built(wheel.WheelBuilder, tmp_path)) as found:
        names = set(found.namelist())
    about = f"auxnas_layers-{auxnas_layers.__version__}.dist-info/"
    rest = {name.removeprefix(about) for name in names if not name.startswith("auxnas_layers/")}
    assert rest == {"METADATA", "WHEEL", "RECORD", "licenses/LICENSE"}
    here = {str(path.relative_to(ROOT)) for path in (ROOT / "auxnas_layers").rglob("*.py")} | {"auxnas_layers/py.typed"}
    assert names - {about + name for name in rest} == here


def test_a_source_archive_holds_what_its_make_targets_need(tmp_path):
    with tarfile.open(built(sdist.SdistBuilder, tmp_path)) as found:
        names = {name.split("/")[1] for name in found.getnames() if name.count("/")}
    assert names >= {
        "Makefile",
        "README.md",
        "auxnas_layers",
        "docs",
        "examples",
        "mkdocs.yml",
        "pyproject.toml",
        "tests",
    }
    assert "CITATION.cff" in names
