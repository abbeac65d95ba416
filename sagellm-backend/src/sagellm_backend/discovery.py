"""What can compute on this machine: every installed backend asked in turn, and the choice among them.

Knows backends only as entry points of ``sagellm.backends``, its own like anyone's. Imports no torch until asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sagellm_protocol import plugins
from sagellm_protocol.backend import Backend
from sagellm_protocol.devices import BackendCapabilities
from sagellm_protocol.errors import ErrorCode, SageLLMError

AUTO = "auto"


@dataclass(frozen=True)
class TorchReport:
    """What the installed torch was built for, and what of it is here.

    Attributes:
        version: Of torch; ``None`` where it cannot be imported.
        problem: Why it cannot be imported.
        cuda_build: CUDA version it was built for, if any.
        gpu_present: Whether it can use a GPU here.
        threads: Processors it would use now.
        instruction_set: What its own kernels use (``AVX512``).
    """

    version: str | None
    problem: str | None = None
    cuda_build: str | None = None
    gpu_present: bool = False
    threads: int | None = None
    instruction_set: str | None = None

    @property
    def cuda_without_gpu(self) -> bool:
        """Whether gigabytes of CUDA libraries were installed to no use."""
        return self.cuda_build is not None and not self.gpu_present


def doctor_report() -> TorchReport:
    """Import torch and say what it is."""
    try:
        import torch
    except (ImportError, OSError) as error:
        # A torch built for other hardware fails to load its libraries with an OSError.
        return TorchReport(version=None, problem=str(error))
    return TorchReport(
        version=torch.__version__,
        cuda_build=torch.version.cuda,
        gpu_present=torch.cuda.is_available(),
        threads=torch.get_num_threads(),
        instruction_set=torch.backends.cpu.get_cpu_capability(),
    )


def discover() -> tuple[BackendCapabilities, ...]:
    """Capabilities of every installed backend, most preferred first; those that cannot run say why."""
    found = []
    for name in sorted(plugins.installed(plugins.BACKENDS)):
        try:
            found.append(_create(name, None, AUTO, None).capabilities())
        except SageLLMError as error:
            found.append(BackendCapabilities(backend=name, available=False, reason=error.message))
    return tuple(sorted(found, key=lambda able: (able.available, able.rank), reverse=True))


def select(name: str = AUTO, *, dtype: str = AUTO, threads: int | None = None) -> Backend[Any]:
    """Make the backend called ``name``, or the most capable one that runs here.

    Args:
        name: ``auto``, or a backend's name, with a device's index after a colon where there are several.
        dtype: Type to compute in, or ``auto``.
        threads: Processors to use; by default all that this process may, less one where there are more than two.

    Raises:
        SageLLMError: ``NOT_INSTALLED`` for an unknown name, with those that are available; ``UNSUPPORTED`` for one that
            cannot run here, with its reason and those that can.
    """
    if name == AUTO:
        return _best(dtype, threads)
    bare = name.partition(":")[0]
    try:
        backend = _create(bare, name, dtype, threads)
        able = backend.capabilities()
        if able.available:
            return backend
        refusal = SageLLMError(ErrorCode.UNSUPPORTED, f"backend {bare!r} cannot run here: {able.reason}", "device")
    except SageLLMError as error:
        refusal = error
    if bare in plugins.installed(plugins.BACKENDS) and refusal.param in ("dtype", "threads"):
        raise refusal
    usable = ", ".join(able.backend for able in discover() if able.available) or "nothing"
    raise SageLLMError(refusal.code, f"{refusal.message}; available here: {usable}", "device") from refusal


def _best(dtype: str, threads: int | None) -> Backend[Any]:
    refusals = []
    for able in discover():
        if not able.available:
            refusals.append(f"{able.backend}: {able.reason}")
            continue
        try:
            return _create(able.backend, None, dtype, threads)
        except SageLLMError as error:
            refusals.append(f"{able.backend}: {error.message}")
    reasons = "; ".join(refusals) or "none is installed: pip install isagellm-backend"
    raise SageLLMError(ErrorCode.NOT_INSTALLED, f"no backend can run here ({reasons})", "device")


def _create(name: str, device: str | None, dtype: str, threads: int | None) -> Backend[Any]:
    backend: Backend[Any] = plugins.load(plugins.BACKENDS, name)(device, dtype=dtype, threads=threads)
    return backend
