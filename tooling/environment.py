"""Virtual environments that are set up once and reused; knows nothing of what is run in them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import nox

ROOT = Path(__file__).parent.parent
STATE = ROOT / ".nox"
CONSTRAINTS = ROOT / "constraints.txt"


class Environment:
    """A virtual environment under ``.nox`` whose layers are installed once for each content of what made them."""

    def __init__(self, session: nox.Session, name: str) -> None:
        self.session = session
        self.folder = STATE / f"{name}py{sys.version_info.major}{sys.version_info.minor}"
        self.python = self.folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    def run(self, *command: str, cwd: Path = ROOT, success_codes: Sequence[int] = (0,)) -> None:
        """Run a module of this environment, as ``python -m`` does."""
        with self.session.chdir(cwd):
            self.session.run(str(self.python), "-m", *command, success_codes=success_codes)

    def install(self, layer: str, *arguments: str, made_from: object = None, constraints: Path = CONSTRAINTS) -> None:
        """``pip install`` the arguments unless this layer stands already, from the same Python and constraints.

        Args:
            layer: Name of the layer; one stamp file in the environment.
            arguments: What pip is given.
            made_from: Anything else, as plain data, whose change makes the layer stale.
            constraints: Versions that hold for whatever pip has to choose.
        """
        # The checkout's place counts: an editable install points into it.
        base = [sys.version, sys.base_prefix, str(ROOT)]
        stamp = self.folder / "layers" / layer
        digest = fingerprint(base, arguments, made_from, constraints.read_text())
        with locked(self.folder):
            if not same(self.folder / "layers" / "base", fingerprint(base)):
                shutil.rmtree(self.folder, ignore_errors=True)
                self.session.log(f"Creating {self.folder.relative_to(ROOT)}")
                self.session.run(sys.executable, "-m", "venv", str(self.folder), silent=True)
                write(self.folder / "layers" / "base", fingerprint(base))
            if not same(stamp, digest):
                self.run("pip", "install", "--disable-pip-version-check", "-c", str(constraints), *arguments)
                write(stamp, digest)


def fingerprint(*parts: object) -> str:
    """A digest of plain data."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def same(stamp: Path, digest: str) -> bool:
    """Whether the stamp file says the digest."""
    return stamp.exists() and stamp.read_text() == digest


def write(stamp: Path, digest: str) -> None:
    """Leave a stamp; called only once the work that it stands for has succeeded."""
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.write_text(digest)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold an environment while it is changed, so that two terminals may start at once."""
    STATE.mkdir(exist_ok=True)
    if os.name == "nt":
        yield
        return
    import fcntl

    with (STATE / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
