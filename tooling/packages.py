"""What the six packages declare about themselves; knows nothing of environments or of nox's sessions."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from nox.project import load_toml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
NAMES = ("protocol", "backend", "core", "control-plane", "gateway", "umbrella")


@dataclasses.dataclass(frozen=True)
class Package:
    """One folder of the tree and the ``[project]`` table in it."""

    name: str
    folder: Path
    project: dict[str, object]

    @property
    def distribution(self) -> str:
        """The name it is installed under."""
        return str(self.project["name"])

    def requirements(self, *extras: str) -> list[Requirement]:
        """What it declares to need, with the lists of the extras named."""
        optional = self.project.get("optional-dependencies", {})
        lists = [self.project["dependencies"], *(optional[extra] for extra in extras)]
        return [Requirement(line) for lines in lists for line in lines]


def packages() -> dict[str, Package]:
    """The six by distribution name, each after those it requires."""
    found = {}
    for name in NAMES:
        folder = ROOT / f"sagellm-{name}"
        package = Package(name, folder, load_toml(folder / "pyproject.toml")["project"])
        found[package.distribution] = package
    return found


def split(package: Package, *extras: str) -> tuple[list[Package], list[str]]:
    """What installing ``package[extras]`` brings: packages of this tree, and third-party requirements."""
    ours, siblings, third_party, queue = packages(), {}, set(), [(package, extras)]
    seen = set()
    while queue:
        current, wanted = queue.pop()
        siblings[current.distribution] = current
        for requirement in current.requirements(*wanted):
            sibling = ours.get(canonicalize_name(requirement.name))
            if sibling is None:
                third_party.add(str(requirement))
            elif (step := (sibling.name, *sorted(requirement.extras))) not in seen:
                seen.add(step)
                queue.append((sibling, tuple(requirement.extras)))
    return list(siblings.values()), sorted(third_party)
