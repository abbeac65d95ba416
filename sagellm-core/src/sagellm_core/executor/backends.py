"""Choosing the backend a model runs on: by name, or the most capable one that can run here.

Knows no backend; they are entry points of ``sagellm.backends``.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

from sagellm_protocol import plugins
from sagellm_protocol.backend import Backend
from sagellm_protocol.devices import BackendCapabilities, DType
from sagellm_protocol.errors import ErrorCode, SageLLMError

AUTO = "auto"


def open_backend(device: str = AUTO, *, dtype: str = AUTO, threads: int | None = None) -> Backend[Any]:
    """Make a backend.

    Args:
        device: ``auto``, or a backend's name, with a device's index after a colon where there are several (``cuda:1``).
        dtype: Type to compute in, or ``auto``.
        threads: Processors to use, where that is a choice; by default as many as ``OMP_NUM_THREADS`` says, and where
            that is not set either, the backend decides.

    Raises:
        SageLLMError: ``NOT_INSTALLED`` for an unknown name, listing those known, or when ``auto`` finds none that runs
            here, with each one's reason; whatever the backend says that was named or found and cannot do as asked.
    """
    if threads is None:
        threads = _threads_of_the_environment()
    if device != AUTO:
        return _create(device.partition(":")[0], device, dtype, threads)
    best: tuple[int, str] | None = None
    refusals = []
    for name in sorted(plugins.installed(plugins.BACKENDS)):
        try:
            backend = _create(name, None, AUTO, threads)
        except SageLLMError as error:
            refusals.append(f"{name}: {error.message}")
            continue
        rank = backend.capabilities().rank
        if best is None or rank > best[0]:
            best = rank, name
    if best is None:
        reasons = "; ".join(refusals) or "none is installed: pip install isagellm-backend"
        raise SageLLMError(ErrorCode.NOT_INSTALLED, f"no backend can run here ({reasons})", "device")
    # What was asked for does not choose the backend: a type that the best one lacks would bring in a slow one unasked.
    return _create(best[1], None, dtype, threads)


def import_backends() -> None:
    """Import every backend with its libraries, which is most of what making one takes.

    One that cannot be imported says why to whoever asks for it.
    """
    for name in plugins.installed(plugins.BACKENDS):
        with contextlib.suppress(SageLLMError):
            plugins.load(plugins.BACKENDS, name)


def compute_dtype(capabilities: BackendCapabilities, dtype: str) -> DType:
    """The type to compute in: the backend's preferred one for ``auto``, else the one named.

    Raises:
        SageLLMError: ``UNSUPPORTED`` for one the backend does not compute in, listing those it does.
    """
    if dtype == AUTO:
        return capabilities.dtypes[0]
    for offered in capabilities.dtypes:
        if offered.value == dtype:
            return offered
    raise SageLLMError(
        ErrorCode.UNSUPPORTED,
        f"dtype {dtype!r} is not offered by backend {capabilities.backend!r} here; it computes in"
        f" {', '.join(offered.value for offered in capabilities.dtypes)} (or say {AUTO!r})",
        "dtype",
    )


def cache_dtype(capabilities: BackendCapabilities, dtype: str, computed_in: DType) -> DType:
    """The type to keep keys and values in: the one computed in for ``auto``, else the one named.

    Raises:
        SageLLMError: ``UNSUPPORTED`` for one the backend does not keep, listing those it does.
    """
    if dtype == AUTO:
        return computed_in
    for offered in capabilities.kv_dtypes:
        if offered.value == dtype:
            return offered
    raise SageLLMError(
        ErrorCode.UNSUPPORTED,
        f"kv_cache_dtype {dtype!r} is not offered by backend {capabilities.backend!r} here; it keeps"
        f" {', '.join(offered.value for offered in capabilities.kv_dtypes)} (or say {AUTO!r})",
        "kv_cache_dtype",
    )


def check_quantization(capabilities: BackendCapabilities, quantization: str | None, stored: str | None = None) -> None:
    """Refuse to quantise at load to what the backend does not offer, or what is quantised, before anything is read.

    Args:
        capabilities: The backend's.
        quantization: What is asked for.
        stored: The method that the checkpoint's weights are quantised with, if they are.

    Raises:
        SageLLMError: ``UNSUPPORTED``, listing what it does offer; ``INVALID_REQUEST`` for weights that are quantised.
    """
    if quantization is not None and stored is not None:
        raise SageLLMError(
            ErrorCode.INVALID_REQUEST,
            f"quantization {quantization!r} was asked for, but the model's weights are quantised with {stored} already;"
            " leave it out, or name the unquantised model",
            "quantization",
        )
    if quantization is not None and quantization not in capabilities.quantizations:
        raise SageLLMError(
            ErrorCode.UNSUPPORTED,
            f"quantization {quantization!r} is not offered by backend {capabilities.backend!r} here; it offers"
            f" {', '.join(capabilities.quantizations) or 'none'} (or leave it out)",
            "quantization",
        )


def _threads_of_the_environment() -> int | None:
    # A list gives a number to each level of nested regions; ours are not nested.
    outermost = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(outermost) if outermost.isdecimal() and int(outermost) else None  # OpenMP passes over others, too


def _create(name: str, device: str | None, dtype: str, threads: int | None) -> Backend[Any]:
    create = plugins.load(plugins.BACKENDS, name)
    backend: Backend[Any] = create(device, dtype=dtype, threads=threads)
    capabilities = backend.capabilities()
    if not capabilities.available:
        raise SageLLMError(ErrorCode.UNSUPPORTED, f"backend {name!r} cannot run here: {capabilities.reason}", "device")
    return backend
