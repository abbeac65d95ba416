"""Finding backends, choosing one, and saying why not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sagellm_backend
from sagellm_backend import cpu, reference
from sagellm_protocol.devices import DType
from sagellm_protocol.errors import ErrorCode, SageLLMError

TOY = Path(__file__).parent / "toy_backend"


@pytest.fixture
def broken_backend(tmp_path, monkeypatch):
    """A distribution whose backend is installed and cannot run."""
    (tmp_path / "broken_device.py").write_text(
        "from sagellm_protocol.errors import ErrorCode, SageLLMError\n"
        "def create(device=None, *, dtype='auto', threads=None):\n"
        "    raise SageLLMError(ErrorCode.NOT_INSTALLED, 'the driver is missing; pip install driver')\n"
    )
    info = tmp_path / "broken_backend-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-backend\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[sagellm.backends]\nbroken = broken_device:create\n")
    monkeypatch.syspath_prepend(tmp_path)


def test_auto_prefers_the_fast_backend():
    assert sagellm_backend.select().name == "cpu"
    assert [able.backend for able in sagellm_backend.discover()] == ["cpu", "reference"]


@pytest.mark.parametrize("name", ["cpu", "reference", "cpu:0"])
def test_a_backend_is_made_by_name(name):
    assert sagellm_backend.select(name).name == name.partition(":")[0]


def test_a_device_that_is_not_built_is_refused_with_what_is_available():
    with pytest.raises(SageLLMError, match=r"nothing named 'cuda'.*available here: cpu, reference") as caught:
        sagellm_backend.select("cuda:1")
    assert caught.value.code is ErrorCode.NOT_INSTALLED


@pytest.mark.usefixtures("broken_backend")
def test_a_backend_that_cannot_run_says_why_and_auto_passes_it_over():
    report = sagellm_backend.discover()[-1]
    assert (report.backend, report.available) == ("broken", False)
    assert report.reason == "the driver is missing; pip install driver"
    assert sagellm_backend.select().name == "cpu"
    with pytest.raises(SageLLMError, match=r"driver is missing.*available here: cpu, reference"):
        sagellm_backend.select("broken")


@pytest.mark.parametrize("module", [cpu, reference])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int3"}, "dtype 'int3'.*auto, .*float32"),
        ({"device": "cpu:7"}, "drives the device 'cpu', not 'cpu:7'"),
        ({"threads": 0}, "threads is 0; it must be at least 1"),
    ],
)
def test_an_option_that_cannot_be_honoured_is_refused_by_name(module, options, message):
    with pytest.raises(SageLLMError, match=message):
        module.create(**options)


def test_an_unknown_dtype_keeps_its_own_message_when_selecting():
    with pytest.raises(SageLLMError, match="dtype 'int3'") as caught:
        sagellm_backend.select("cpu", dtype="int3")
    assert caught.value.param == "dtype"


def test_threads_are_used():
    cpu.create(threads=1)
    assert torch.get_num_threads() == 1


def test_a_dtype_asked_for_is_the_preferred_one():
    assert cpu.create(dtype="float32").capabilities().dtypes[0] is DType.FLOAT32
    assert reference.create().capabilities().dtypes[0] is DType.FLOAT32


def test_what_is_not_offered_is_refused_by_name():
    ops = cpu.create(threads=1)
    with pytest.raises(SageLLMError, match="captures no graphs"):
        ops.capture(lambda: None)
    with pytest.raises(SageLLMError, match="float8_e4m3 here; it offers"):
        ops.allocate_kv([], 1, 16, DType.FLOAT8_E4M3)


def test_the_doctor_is_told_what_torch_is():
    report = sagellm_backend.doctor_report()
    assert report.version == torch.__version__
    assert report.cuda_build == torch.version.cuda
    assert report.cuda_without_gpu == (torch.version.cuda is not None and not torch.cuda.is_available())


def test_importing_the_package_imports_no_torch():
    code = "import sys, sagellm_backend; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_the_pool_is_touched_only_where_it_is_written():
    from sagellm_protocol.backend import KVSpec

    ops = cpu.create(threads=1)
    before = _resident()
    cache = ops.allocate_kv([KVSpec(8, 128, 128)] * 4, 4096, 16, DType.FLOAT32)
    assert cache.nbytes == 2**31
    assert _resident() - before < 2**28


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_backend_of_another_distribution_is_found_and_passes_the_suite(tmp_path):
    target = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*install, "--target", str(target), str(TOY)], check=True, timeout=100)
    environment = {**os.environ, "PYTHONPATH": str(target), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(TOY / "check_toy.py")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-3000:]
