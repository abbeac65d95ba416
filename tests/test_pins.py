"""The six packages fit together: what pins.toml, constraints.txt and the packages' own metadata say agrees."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PYPROJECTS = {path.parent.name: tomllib.loads(path.read_text()) for path in ROOT.glob("sagellm-*/pyproject.toml")}
PROJECTS = {data["project"]["name"]: data["project"] for data in PYPROJECTS.values()}
PINS = tomllib.loads((ROOT / "pins.toml").read_text())["pins"]
each_package = pytest.mark.parametrize("folder", sorted(PYPROJECTS))


def requirements(project):
    extras = project.get("optional-dependencies", {}).values()
    return [Requirement(line) for lines in [project["dependencies"], *extras] for line in lines]


def test_pins_name_the_six_packages_at_the_versions_they_carry():
    assert len(PROJECTS) == 6
    assert {name: project["version"] for name, project in PROJECTS.items()} == PINS


@pytest.mark.parametrize("name", sorted(PROJECTS))
def test_siblings_admit_the_pinned_version_and_no_release_of_the_older_code_base(name):
    siblings = [r for r in requirements(PROJECTS[name]) if r.name in PINS and r.name != name]
    assert all(r.specifier.contains(PINS[r.name]) for r in siblings)
    assert not any(r.specifier.contains("0.5.4.17") for r in siblings)
    assert siblings or name == "isagellm-protocol"


@pytest.mark.parametrize("name", sorted(PROJECTS))
def test_whatever_a_package_requires_is_pinned_within_the_range_it_declares(name):
    pinned = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.lstrip().startswith("#"):
            pin = Requirement(line)
            if pin.marker is None or pin.marker.evaluate():
                [exact] = pin.specifier
                pinned[canonicalize_name(pin.name)] = exact.version
    for requirement in requirements(PROJECTS[name]):
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if applies and requirement.name not in PINS:
            version = pinned.get(canonicalize_name(requirement.name))
            assert version is not None, f"{requirement.name} is not in constraints.txt: run `nox -s pin`"
            assert requirement.specifier.contains(version), f"{requirement} does not admit the pinned {version}"


@pytest.mark.parametrize("name", sorted(PROJECTS))
def test_every_third_party_requirement_states_a_lower_bound(name):
    for requirement in requirements(PROJECTS[name]):
        assert requirement.name in PINS or any(s.operator in (">=", "~=") for s in requirement.specifier), requirement


@each_package
def test_a_folder_is_a_complete_repository_root(folder):
    root, version = ROOT / folder, PYPROJECTS[folder]["project"]["version"]
    [package] = [path for path in (root / "src").iterdir() if (path / "__init__.py").exists()]
    assert (package / "py.typed").exists()
    assert list((root / "tests").glob("**/test_*.py"))
    assert (root / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    assert f"## {version}" in (root / "CHANGELOG.md").read_text()
    assert (root / "README.md").read_text().startswith(f"# {PYPROJECTS[folder]['project']['name']}\n")


@each_package
def test_every_package_is_held_to_the_same_rules(folder):
    tools, model = PYPROJECTS[folder]["tool"], PYPROJECTS["sagellm-protocol"]["tool"]
    assert set(tools["ruff"]["lint"]["select"]) >= set(model["ruff"]["lint"]["select"])
    assert tools["ruff"]["line-length"] == model["ruff"]["line-length"]
    assert tools["mypy"]["strict"] is True
    assert tools["pytest"]["ini_options"]["filterwarnings"][0] == "error"
