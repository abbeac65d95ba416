"""Which of our distributions are installed, and whether their versions belong together."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

PACKAGES = (
    "isagellm",
    "isagellm-protocol",
    "isagellm-backend",
    "isagellm-core",
    "isagellm-control-plane",
    "isagellm-gateway",
)


def versions() -> dict[str, str | None]:
    """Installed version of each of our distributions; ``None`` where it is absent."""
    return {name: _version(name) for name in PACKAGES}


def mismatches() -> list[str]:
    """Sentences on installed versions of ours that one of our distributions does not accept."""
    found = versions()
    complaints = []
    for owner in (name for name, installed in found.items() if installed):
        for line in requires(owner) or ():
            wanted = Requirement(line)
            installed = found.get(wanted.name)
            if installed and not wanted.specifier.contains(installed, prereleases=True):
                complaints.append(
                    f"{owner} {found[owner]} needs {wanted.name}{wanted.specifier}, installed is {installed}"
                )
    return complaints


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
