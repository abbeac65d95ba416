"""Devices: found, promised, and planned with."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from sagellm_control_plane.devices import Device, DeviceLedger, Link, LinkKind, nodes, nvidia, of_backends
from sagellm_control_plane.devices.numa import node_of, parse_list
from sagellm_protocol import BackendCapabilities, DeviceInfo, ErrorCode, SageLLMError

GIB = 2**30


def device(index: int = 0, total: int | None = 80 * GIB, free: int | None = None, kind: str = "cuda") -> Device:
    return Device(
        DeviceInfo(kind=kind, index=index, name=kind, memory_total_bytes=total, memory_free_bytes=free or total)
    )


# --- finding ----------------------------------------------------------------------------------------------------------


def test_without_a_driver_there_are_none_and_the_reason_is_told() -> None:
    pytest.importorskip("pynvml")
    if Path("/dev/nvidiactl").exists():
        pytest.skip("there is a driver here")
    found = nvidia.find()
    assert found.devices == ()
    assert found.reason is not None
    assert found.reason.startswith("NVIDIA: ")
    assert "NVML" in found.reason


def test_without_its_package_the_reason_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "isagellm-control-plane[nvidia]" in (nvidia.find().reason or "")


class FakeNvml(ModuleType):
    """Four devices: 0 and 1 are joined by two NVLinks, 2 and 3 reach a switch by three; 3 does not tell its load."""

    class NVMLError(Exception):
        pass

    NVML_TOPOLOGY_INTERNAL, NVML_TOPOLOGY_SINGLE, NVML_TOPOLOGY_MULTIPLE = 0, 10, 20
    NVML_TOPOLOGY_HOSTBRIDGE, NVML_TOPOLOGY_NODE, NVML_TOPOLOGY_SYSTEM = 30, 40, 50

    class Answer:
        def __init__(self, **values: object) -> None:
            self.__dict__.update(values)

    open = 0

    def nvmlInit(self) -> None:
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return 4

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetName(self, handle: int) -> bytes:
        return b"H100"

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Answer:
        return self.Answer(total=80 * GIB, free=79 * GIB)

    def nvmlDeviceGetCudaComputeCapability(self, handle: int) -> tuple[int, int]:
        return 9, 0

    def nvmlDeviceGetPciInfo(self, handle: int) -> Answer:
        return self.Answer(busId=f"00000000:0{handle}:00.0")

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Answer:
        if handle == 3:
            raise self.NVMLError("Not Supported")
        return self.Answer(gpu=25)

    def nvmlDeviceGetNvLinkState(self, handle: int, link: int) -> int:
        if link >= 3:
            raise self.NVMLError("Invalid Argument")
        return int(handle >= 2 or link < 2)

    def nvmlDeviceGetNvLinkRemotePciInfo(self, handle: int, link: int) -> Answer:
        return self.Answer(busId=f"00000000:0{1 - handle}:00.0" if handle < 2 else "00000000:FF:00.0")

    def nvmlDeviceGetTopologyCommonAncestor(self, one: int, other: int) -> int:
        return self.NVML_TOPOLOGY_NODE if (one, other) == (0, 2) else self.NVML_TOPOLOGY_SYSTEM


def test_devices_and_links_are_read_from_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml("pynvml")
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    found = nvidia.find()
    assert nvml.open == 0
    assert [one.key for one in found.devices] == [("cuda", index) for index in range(4)]
    assert found.devices[0].info.instruction_sets == ("sm_90",)
    assert [one.utilisation for one in found.devices] == [0.25, 0.25, 0.25, None]
    links = {(link.a, link.b): (link.kind, link.lanes) for link in found.links}
    assert links[0, 1] == (LinkKind.NVLINK, 2)
    assert links[2, 3] == (LinkKind.NVLINK, 3)
    assert links[0, 2] == (LinkKind.HOST, 1)
    assert links[1, 3] == (LinkKind.SOCKETS, 1)


def test_other_devices_are_those_that_backends_report() -> None:
    ascend = BackendCapabilities(
        backend="ascend", available=True, devices=(DeviceInfo(kind="ascend", index=0, name="910B"),)
    )
    broken = BackendCapabilities(backend="cuda", available=False, reason="torch has no CUDA")
    assert [one.key for one in of_backends([broken, ascend, ascend]).devices] == [("ascend", 0)]
    assert of_backends([broken]).reason == "cuda: torch has no CUDA"


@pytest.mark.skipif(not Path("/sys/devices/system/node/node0").exists(), reason="the kernel tells of no nodes here")
def test_the_nodes_of_this_machine() -> None:
    found = nodes()
    assert found[0].index == 0
    assert sum(len(node.cpus) for node in found) > 0
    assert (found[0].memory_bytes or 0) > 0
    assert found[0].distances[0] == 10


def test_nodes_are_read_as_the_kernel_writes_them(tmp_path: Path) -> None:
    assert parse_list("0-3,8\n") == (0, 1, 2, 3, 8)
    near = tmp_path / "bus/pci/devices/0000:3b:00.0"
    near.mkdir(parents=True)
    (near / "numa_node").write_text("1\n")
    assert node_of("00000000:3B:00.0", tmp_path) == 1
    (near / "numa_node").write_text("-1\n")
    assert node_of("0000:3b:00.0", tmp_path) is None
    assert node_of("0000:ff:00.0", tmp_path) is None
    assert nodes(tmp_path) == ()


# --- promising --------------------------------------------------------------------------------------------------------


def test_memory_is_promised_once_and_comes_back_once() -> None:
    ledger = DeviceLedger([device(0), device(1)])
    assert ledger.allocate("a", 50 * GIB, 2).devices == (("cuda", 0), ("cuda", 1))
    with pytest.raises(SageLLMError, match=r"cuda:0 30\.0, cuda:1 30\.0") as short:
        ledger.allocate("b", 40 * GIB)
    assert short.value.code is ErrorCode.UNAVAILABLE
    with pytest.raises(SageLLMError) as twice:
        ledger.allocate("a", 1)
    assert twice.value.code is ErrorCode.CONFLICT
    assert ledger.release("a") is not None
    assert ledger.release("a") is None
    assert ledger.free(("cuda", 0)) == 80 * GIB


def test_what_others_use_is_not_promised_and_what_is_promised_is_not_counted_twice() -> None:
    ledger = DeviceLedger([device(free=70 * GIB)])
    ledger.allocate("a", 50 * GIB)
    assert ledger.free(("cuda", 0)) == 20 * GIB
    ledger.refresh([device(free=25 * GIB)])
    assert ledger.free(("cuda", 0)) == 20 * GIB
    ledger.refresh([device(free=5 * GIB)])
    assert ledger.free(("cuda", 0)) == 5 * GIB


def test_close_devices_go_together_and_small_holes_are_filled_first() -> None:
    links = [Link(0, 1, LinkKind.SOCKETS), Link(0, 2, LinkKind.SOCKETS), Link(1, 2, LinkKind.NVLINK, 4)]
    ledger = DeviceLedger([device(index) for index in range(3)], links)
    assert ledger.allocate("pair", 40 * GIB, 2).devices == (("cuda", 1), ("cuda", 2))
    assert ledger.allocate("small", 10 * GIB).devices == (("cuda", 1),)


def test_devices_of_owners_who_are_gone_come_back() -> None:
    ledger = DeviceLedger([device()])
    ledger.allocate("alive", GIB)
    ledger.allocate("crashed", GIB)
    assert [grant.owner for grant in ledger.keep({"alive"})] == ["crashed"]
    assert ledger.promised(("cuda", 0)) == GIB


def test_kinds_are_not_mixed_and_a_device_of_unknown_memory_goes_whole() -> None:
    ledger = DeviceLedger([device(0), device(0, None, kind="ascend")])
    with pytest.raises(SageLLMError):
        ledger.allocate("a", GIB, 2)
    ledger.allocate("a", GIB, kind="ascend")
    with pytest.raises(SageLLMError):
        ledger.allocate("b", GIB, kind="ascend")


def test_many_at_once_never_get_more_than_there_is() -> None:
    ledger = DeviceLedger([device(0), device(1)])
    granted: list[str] = []

    def take(name: str) -> None:
        try:
            ledger.allocate(name, 30 * GIB)
        except SageLLMError:
            return
        granted.append(name)

    threads = [threading.Thread(target=take, args=(f"t{number}",)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(granted) == 4
    assert ledger.promised(("cuda", 0)) == ledger.promised(("cuda", 1)) == 60 * GIB


class Promises(RuleBasedStateMachine):
    """Whatever is asked for and given back, no device is promised beyond its memory and every promise ends once."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = DeviceLedger([device(index, 100) for index in range(3)])
        self.held: dict[str, tuple[tuple[tuple[str, int], ...], int]] = {}

    @rule(owner=st.sampled_from("abcdef"), size=st.integers(1, 120), count=st.integers(1, 4))
    def allocate(self, owner: str, size: int, count: int) -> None:
        fits = sum(self.ledger.free(("cuda", index)) >= size for index in range(3)) >= count
        try:
            grant = self.ledger.allocate(owner, size, count)
        except SageLLMError:
            assert owner in self.held or not fits
            return
        assert owner not in self.held
        assert fits
        assert len(set(grant.devices)) == count
        self.held[owner] = (grant.devices, size)

    @rule(owner=st.sampled_from("abcdef"))
    def release(self, owner: str) -> None:
        assert (self.ledger.release(owner) is not None) == (self.held.pop(owner, None) is not None)

    @invariant()
    def adds_up(self) -> None:
        for index in range(3):
            promised = sum(size for devices, size in self.held.values() if ("cuda", index) in devices)
            assert self.ledger.promised(("cuda", index)) == promised <= 100
            assert self.ledger.free(("cuda", index)) == 100 - promised


TestPromises = Promises.TestCase
TestPromises.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)
