# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""The layout: links from src/jvlm to the top-level folders, what pyproject.toml lists, and where imports lead."""

import importlib.util
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import jvlm


ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "jvlm"
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = SETTINGS["tool"]["setuptools"]["packages"]
NOT_TOP_LEVEL = {
    **{name: f"src/{name}" for name in ("jvlm", "jvlm_cli", "jvlm_vllm")},
    "jvlm.runtimes": "src/jvlm/runtimes",
    "jvlm.shipped_model": "examples/digits/model",
}
FOLDERS = [name.removeprefix("jvlm.") for name in PACKAGES if name not in NOT_TOP_LEVEL]
needs_links = pytest.mark.skipif(
    not any(path.is_symlink() for path in PACKAGE.iterdir()), reason="This checkout has no symbolic links."
)


def test_every_package_is_listed_once():
    links = {path.name for path in PACKAGE.iterdir() if path.is_symlink()}
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert len(PACKAGES) == len(set(PACKAGES))
    assert "jvlm" in PACKAGES
    assert links | folders <= {*FOLDERS, "runtimes", "shipped_model"}
    # Every folder of the repository whose modules belong to `jvlm` imports them relatively.
    relative = re.compile(r"^from \.\.\w+", re.MULTILINE)
    of_jvlm = {path.parent.name for path in ROOT.glob("*/*.py") if relative.search(path.read_text())}
    assert of_jvlm <= set(FOLDERS)


@needs_links
@pytest.mark.parametrize("folder", FOLDERS)
def test_links_lead_to_the_top_level_folders(folder):
    link = PACKAGE / folder
    assert link.is_symlink()
    assert os.readlink(link) == f"../../{folder}"
    assert link.resolve() == ROOT / folder
    assert not (ROOT / folder).is_symlink()
    assert (ROOT / folder / "__init__.py").is_file()


@pytest.mark.parametrize("folder", FOLDERS)
def test_modules_are_the_files_of_the_top_level_folders(folder):
    assert Path(jvlm.__file__).resolve() == PACKAGE / "__init__.py"
    found = importlib.util.find_spec(f"jvlm.{folder}").origin
    assert Path(found).resolve() == ROOT / folder / "__init__.py"


def test_the_package_says_that_it_is_typed():
    assert (PACKAGE / "py.typed").is_file()
    assert "py.typed" in SETTINGS["tool"]["setuptools"]["package-data"]["jvlm"]


@needs_links
def test_beside_a_folder_called_jvlm_the_package_is_found(tmp_path):
    """As in the parent folder of a clone: an editable install adds a line to a .pth file, which `site` reads."""
    (tmp_path / "jvlm" / "modeling").mkdir(parents=True)
    site_packages = tmp_path / "site-packages"
    site_packages.mkdir()
    (site_packages / "jvlm.pth").write_text(f"{ROOT / 'src'}\n")
    program = (
        "import importlib.util as util, site, sys\n"
        "spec = util.find_spec('jvlm')\n"
        "print(spec.origin if spec else spec)\n"
        f"site.addsitedir({str(site_packages)!r})\n"
        "sys.path_importer_cache.clear()\n"
        "print(util.find_spec('jvlm').origin)\n"
        "print(util.find_spec('jvlm').submodule_search_locations)\n"
    )
    command = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, '')\n{program}"]  # as `python -c`
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    before, origin, locations = finished.stdout.splitlines()
    assert before == "None"  # without the install, a namespace package
    assert Path(origin) == PACKAGE / "__init__.py"
    assert locations == str([str(PACKAGE)])


# Runs setup.py, and prints where the distribution that it asks for has its packages.
PACKAGE_DIR = """
import json, runpy, setuptools
def setup(distclass, **attributes):
    distribution = distclass(attributes)
    distribution.parse_config_files()
    print(json.dumps(distribution.package_dir))
setuptools.setup = setup
runpy.run_path("setup.py", run_name="__main__")
"""


@needs_links
def test_sdist_and_wheel_are_complete(tmp_path):
    """The wheel is built from the sdist. Both hold all modules, the shipped model and its samples, and no tests."""
    pytest.importorskip("setuptools")
    source, dist = tmp_path / "source", tmp_path / "dist"
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in (*FOLDERS, "src", "examples/digits/model"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignore)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, source / name)
    (source / "tests").mkdir()
    (source / "tests" / "test_nothing.py").write_text("")
    build = [sys.executable, "-c", "import sys, setuptools.build_meta as b; getattr(b, sys.argv[1])(sys.argv[2])"]
    subprocess.run([*build, "build_sdist", str(dist)], cwd=source, capture_output=True, check=True)
    sdist = next(dist.glob("*.tar.gz"))
    with tarfile.open(sdist) as archive:
        assert not [name for name in archive.getnames() if "test_nothing" in name]
        archive.extractall(tmp_path / "unpacked", filter="data")
    unpacked = tmp_path / "unpacked" / sdist.name.removesuffix(".tar.gz")
    subprocess.run([*build, "build_wheel", str(dist)], cwd=unpacked, capture_output=True, check=True)
    with zipfile.ZipFile(next(dist.glob("*.whl"))) as archive:
        found = set(archive.namelist())
        metadata = archive.read(next(name for name in found if name.endswith("/METADATA"))).decode()
    assert "# jvlm" in metadata
    assert "](https://" in metadata
    assert not re.search(r"\]\((?!https?://)", metadata)  # relative links lead nowhere on a package index
    expected = {
        str(path.relative_to(ROOT / "src"))
        for package in ("jvlm", "jvlm_cli", "jvlm_vllm")
        for folder in (ROOT / "src" / package, *(path for path in (ROOT / "src" / package).iterdir() if path.is_dir()))
        for path in folder.glob("*.py")
    }
    assert {f"jvlm/{folder}/__init__.py" for folder in FOLDERS} <= expected
    model = {
        "model.safetensors",
        "config.json",
        "evidence.json",
        "tokenizer.json",
        "chat_template.jinja",
        "samples/page-1x1.png",
    }
    assert expected | {f"jvlm/shipped_model/{name}" for name in model} <= found
    assert not [name for name in found if name.startswith(("tests", "examples"))]


def test_readme_links_lead_to_the_repository_once_it_is_known(tmp_path):
    (tmp_path / "README.md").write_text("![a](docs/a.png) [b](docs/b.md#c), [d](https://e.org)")
    (tmp_path / "pyproject.toml").write_text("[project]")
    readme = runpy.run_path(str(ROOT / "setup.py"))["readme"]
    assert readme(tmp_path) == "a b, [d](https://e.org)"
    (tmp_path / "pyproject.toml").write_text('[project.urls]\nRepository = "https://r.org"')
    blob = "https://r.org/blob/main/docs"
    assert readme(tmp_path) == f"[a]({blob}/a.png) [b]({blob}/b.md#c), [d](https://e.org)"


@pytest.mark.parametrize("linked", [True, False])
def test_without_links_setup_takes_the_top_level_folders(tmp_path, linked):
    pytest.importorskip("setuptools")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "src/jvlm/__init__.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text())
    for folder in FOLDERS:
        (tmp_path / folder).mkdir()
        if linked:
            (tmp_path / "src" / "jvlm" / folder).mkdir()
        else:  # as Git checks links out where it may not make any
            (tmp_path / "src" / "jvlm" / folder).write_text(f"../../{folder}")
    command = [sys.executable, "-c", PACKAGE_DIR]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    found = json.loads(finished.stdout)
    if linked:
        assert found == {"": "src"}
    else:
        assert found == {**NOT_TOP_LEVEL, **{f"jvlm.{folder}": folder for folder in FOLDERS}}


def test_the_scheduled_workflow_runs_every_set_of_versions():
    yaml = pytest.importorskip("yaml")
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "versions.yml").read_text())
    spec = importlib.util.spec_from_file_location("matrix", ROOT / "tools" / "matrix.py")
    matrix = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(matrix)
    sets = matrix.version_sets()
    assert workflow["jobs"]["matrix"]["strategy"]["matrix"]["versions"] == list(sets)
    assert sets.pop("latest releases") == []  # to notice new releases of every dependency
    assert all(any(pin.startswith("torch==") for pin in pins) for pins in sets.values())
