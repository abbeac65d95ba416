"""Choosing a backend: by name, by capability, and the reasons when none will do."""

from __future__ import annotations

from pathlib import Path

import pytest

from sagellm_core.executor.backends import cache_dtype, compute_dtype, open_backend
from sagellm_protocol.devices import BackendCapabilities, DType
from sagellm_protocol.errors import ErrorCode, SageLLMError

PLUGIN = """
from sagellm_protocol.devices import BackendCapabilities
from sagellm_protocol.errors import ErrorCode, SageLLMError

class Toy:
    def __init__(self, device, dtype, threads):
        self.asked = (device, dtype, threads)

    def capabilities(self):
        return BackendCapabilities(backend="toy", available=True, rank=10**6)

def create(device=None, *, dtype="auto", threads=None):
    return Toy(device, dtype, threads)

def broken(device=None, *, dtype="auto", threads=None):
    raise SageLLMError(ErrorCode.NOT_INSTALLED, "no such device here; install its driver")
"""


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A distribution with a backend of the highest rank, and one that cannot run."""
    info = tmp_path / "toy_backends-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-backends\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[sagellm.backends]\ntoy = toy_backends:create\nabsent = toy_backends:broken\n"
    )
    (tmp_path / "toy_backends.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("toys")
def test_auto_takes_the_most_capable_backend_that_can_run() -> None:
    backend = open_backend("auto", dtype="float32", threads=3)
    assert backend.asked == (None, "float32", 3)  # type: ignore[attr-defined]


@pytest.mark.usefixtures("toys")
@pytest.mark.parametrize(("said", "threads"), [("3", 3), (" 2,1", 2), ("", None), ("0", None), ("many", None)])
def test_processors_that_nobody_asked_for_are_as_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, said: str, threads: int | None
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert open_backend("auto").asked[2] == threads  # type: ignore[attr-defined]
    assert open_backend("toy", threads=5).asked[2] == 5  # type: ignore[attr-defined]


@pytest.mark.usefixtures("toys")
def test_a_named_backend_is_told_which_of_its_devices_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert open_backend("toy:1").asked == ("toy:1", "auto", None)  # type: ignore[attr-defined]


@pytest.mark.usefixtures("toys")
def test_a_named_backend_that_cannot_run_says_why() -> None:
    with pytest.raises(SageLLMError, match="install its driver"):
        open_backend("absent")


def test_a_type_that_the_best_backend_lacks_brings_in_no_slower_one() -> None:
    with pytest.raises(SageLLMError, match=r"'float16' .* backend 'cpu' .* float32") as caught:
        open_backend("auto", dtype="float16")
    assert caught.value.code is ErrorCode.UNSUPPORTED
    assert caught.value.param == "dtype"
    assert open_backend("reference", dtype="float16").name == "reference"


def test_an_unknown_backend_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(SageLLMError, match=r"'abacus'.*reference") as caught:
        open_backend("abacus")
    assert caught.value.code is ErrorCode.NOT_INSTALLED


CAPABILITIES = BackendCapabilities(
    backend="toy", available=True, dtypes=(DType.BFLOAT16, DType.FLOAT32), kv_dtypes=(DType.BFLOAT16,)
)


def test_the_preferred_type_is_taken_unless_one_is_named() -> None:
    assert compute_dtype(CAPABILITIES, "auto") is DType.BFLOAT16
    assert compute_dtype(CAPABILITIES, "float32") is DType.FLOAT32
    assert cache_dtype(CAPABILITIES, "auto", DType.FLOAT32) is DType.FLOAT32
    assert cache_dtype(CAPABILITIES, "bfloat16", DType.FLOAT32) is DType.BFLOAT16


def test_a_type_that_is_not_offered_is_refused_with_those_that_are() -> None:
    with pytest.raises(SageLLMError, match=r"'float16'.*bfloat16, float32") as caught:
        compute_dtype(CAPABILITIES, "float16")
    assert caught.value.param == "dtype"
    with pytest.raises(SageLLMError, match=r"'float8_e4m3'.*bfloat16") as caught:
        cache_dtype(CAPABILITIES, "float8_e4m3", DType.BFLOAT16)
    assert caught.value.param == "kv_cache_dtype"
