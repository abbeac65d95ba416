"""GPUs, their topology, and ways to spread models over them, under SAGE's names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from legacy_subjects import place, wanted
from sagellm_control_plane import nvml
from sagellm_control_plane.gpu_manager import GIB, GPUResourceManager
from sagellm_control_plane.parallelism import (
    DataParallelStrategy,
    ExpertParallelStrategy,
    HybridParallelStrategy,
    ParallelismConfig,
    ParallelismOptimizer,
    PipelineParallelStrategy,
    TensorParallelStrategy,
)
from sagellm_control_plane.topology import TopologyDetector
from sagellm_control_plane.types import ParallelismType, RequestPriority
from sagellm_protocol import ErrorCode, SageLLMError


def gpu(index: int, used_gib: float = 0.0, peers: tuple[int, ...] = ()) -> nvml.Gpu:
    total, used = 80 * GIB, int(used_gib * GIB)
    return nvml.Gpu(index, "card", f"GPU-{index}", f"0000000{index}:01:00.0", total, used, total - used, 0.5, 0, peers)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(nvml, "gpus", lambda: [gpu(0, 30.0, (1,)), gpu(1, 0.0, (0,))])


@pytest.fixture
def no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Any:
        raise SageLLMError(ErrorCode.UNAVAILABLE, "no NVIDIA driver answers")

    monkeypatch.setattr(nvml, "gpus", none)


def test_what_the_driver_says_is_what_is_told_or_why_it_says_nothing() -> None:
    manager = GPUResourceManager()
    found = manager.get_system_status()
    assert (manager.reason is None) == bool(found)
    assert all(one["memory_total_gb"] >= one["memory_used_gb"] >= 0 for one in found)


@pytest.mark.usefixtures("no_gpus")
def test_without_a_gpu_there_is_none_and_nothing_is_made_up() -> None:
    manager = GPUResourceManager()
    assert manager.get_system_status() == []
    assert manager.check_resource_availability(1.0) == []
    with pytest.raises(SageLLMError, match=r"there are none \(no NVIDIA driver answers\)"):
        manager.allocate_resources(1.0)
    assert TopologyDetector.detect_nvlink_topology() == {}
    assert TopologyDetector.auto_detect_local_instances("e", "localhost", 8000, "m") == []
    assert TopologyDetector.get_gpu_bus_id(0) is None
    with pytest.raises(ValueError, match="there is no GPU 0"):
        TopologyDetector.create_instance_with_topology("e", 0, "localhost", 8000, "m")


@pytest.mark.usefixtures("two_gpus")
def test_memory_is_reserved_on_the_emptiest_gpus_and_released() -> None:
    manager = GPUResourceManager()
    first = manager.get_system_status()[0]
    assert (first["memory_used_gb"], first["memory_free_gb"], first["is_mock"]) == (30.0, 50.0, False)
    assert manager.check_resource_availability(40.0, 2) == [1, 0]
    assert manager.allocate_resources(45.0) == [1]
    assert manager.allocate_resources(45.0) == [0]
    assert manager.check_resource_availability(40.0) == []
    with pytest.raises(SageLLMError, match=r"1 GPUs with 40 GiB free .* GPU 0: 35\.0 GiB, GPU 1: 35\.0 GiB"):
        manager.allocate_resources(40.0)
    manager.release_resources([1], 45.0)
    assert manager.allocate_resources(80.0) == [1]
    manager.close()
    assert manager.reservations() == {}


@pytest.mark.usefixtures("two_gpus")
def test_only_the_gpus_left_to_this_process_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1")
    assert [one["index"] for one in GPUResourceManager().get_system_status()] == [1]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert GPUResourceManager().get_system_status() == []


@pytest.mark.parametrize(
    ("name", "gib"),
    [
        ("Qwen/Qwen2.5-0.5B-Instruct", 0.5e9 * 2),
        ("meta-llama/Llama-3.1-70B", 70e9 * 2),
        ("mistralai/Mixtral-8x7B-v0.1-AWQ", 56e9 * 0.5),
        ("smollm2-135m", 135e6 * 2),
        ("model-7b-fp8", 7e9),
    ],
)
def test_a_models_memory_follows_from_its_name(name: str, gib: float) -> None:
    manager = GPUResourceManager()
    assert manager.estimate_model_memory(name) == pytest.approx(gib * 1.2 / GIB)
    assert manager.estimate_model_memory(name, 4) == pytest.approx(gib * 1.2 / GIB / 4)


def test_a_models_memory_follows_from_its_files_first(tmp_path: Path) -> None:
    folder = tmp_path / "model-70b"
    folder.mkdir()
    for part in (1, 2):
        (folder / f"{part}.safetensors").write_bytes(b"0" * 1000)
    assert GPUResourceManager().estimate_model_memory(str(folder)) == pytest.approx(2400 / GIB)
    with pytest.raises(ValueError, match="'unknown'"):
        GPUResourceManager().estimate_model_memory("unknown")


@pytest.mark.usefixtures("two_gpus")
def test_instances_know_where_their_gpu_is() -> None:
    assert TopologyDetector.detect_nvlink_topology() == {0: [1], 1: [0]}
    assert TopologyDetector.detect_numa_nodes() == {0: 0, 1: 0}
    first, second = TopologyDetector.auto_detect_local_instances("e", "localhost", 8000, "m", rack_id="r")
    assert (first.instance_id, first.port, first.gpu_device_id, first.nvlink_peers) == ("e-0", 8000, 0, ["e-1"])
    assert first.rack_id == "r"
    assert first.machine_id == TopologyDetector.get_machine_id()
    assert first.get_affinity_score(second) == 1.0
    alone = TopologyDetector.create_instance_with_topology("e-1", 1, "localhost", 8001, "m", gpu_memory_gb=40.0)
    assert (alone.nvlink_peers, alone.gpu_memory_gb) == (["e-0"], 40.0)


# --- parallelism --------------------------------------------------------------------------------------------------


def on(memory_gb: float = 80.0, **facts: Any) -> Any:
    return place("a", gpu_memory_gb=memory_gb, metadata={"model_size_gb": 16.0, **facts})


def test_each_kind_takes_the_sizes_that_it_allows() -> None:
    request = wanted(max_tokens=100)
    assert TensorParallelStrategy().optimize(request, on(num_attention_heads=28), 8).tensor_parallel_size == 4
    assert PipelineParallelStrategy().optimize(request, on(num_layers=6), 8).pipeline_parallel_size == 6
    assert DataParallelStrategy().optimize(request, on(), 5).data_parallel_size == 5
    assert ExpertParallelStrategy().optimize(request, on(num_experts=12), 8).expert_parallel_size == 6
    assert ExpertParallelStrategy().optimize(request, on(), 8).expert_parallel_size == 1


def test_hybrid_takes_the_fewest_devices_for_a_copy_and_copies_over_the_rest() -> None:
    found = HybridParallelStrategy().optimize(wanted(), on(12.0), 8)
    assert found.validate()
    assert (found.tensor_parallel_size, found.pipeline_parallel_size, found.data_parallel_size) == (2, 1, 4)
    large = HybridParallelStrategy().optimize(wanted(), on(80.0, model_size_gb=1000.0), 32)
    assert (large.tensor_parallel_size, large.pipeline_parallel_size) == (8, 2)


def test_a_config_fits_if_its_devices_and_their_memory_do() -> None:
    assert ParallelismConfig().validate()
    assert not ParallelismConfig(tensor_parallel_size=2).validate()
    assert not ParallelismConfig(tensor_parallel_size=0).validate()
    assert not ParallelismConfig(gpu_memory_gb=10.0, model_size_gb=16.0).validate()
    assert ParallelismConfig(tensor_parallel_size=2, total_gpus=2, gpu_memory_gb=12.0, model_size_gb=16.0).validate()


def test_tensors_over_more_devices_answer_sooner_and_copies_answer_more() -> None:
    compared = ParallelismOptimizer().compare_strategies(wanted(prompt="x" * 8000), on(batch_size=8), 8)
    tensor, data = compared[ParallelismType.TENSOR_PARALLEL], compared[ParallelismType.DATA_PARALLEL]
    assert tensor["latency_ms"] < data["latency_ms"]
    assert tensor["communication_ms"] > data["communication_ms"] == 0.0
    assert data["throughput_tokens_per_sec"] > tensor["throughput_tokens_per_sec"]
    # 16 GiB read a step at 3.35 TB/s is the least time a token can take on one device.
    assert data["tpot_ms"] >= 16 * GIB / 3.35e12 * 1000


def test_the_kind_is_chosen_by_what_the_request_needs_and_what_fits() -> None:
    optimizer = ParallelismOptimizer()
    urgent, usual = wanted(priority=RequestPriority.CRITICAL), wanted()
    assert optimizer.select_strategy(urgent, on(), 8)[0].strategy_type is ParallelismType.TENSOR_PARALLEL
    assert optimizer.select_strategy(usual, on(), 8)[0].strategy_type is ParallelismType.DATA_PARALLEL
    strategy, config = optimizer.select_strategy(usual, on(12.0), 8)
    assert config.validate()
    assert strategy.strategy_type is not ParallelismType.DATA_PARALLEL
    hinted = wanted(parallelism_hint=ParallelismType.PIPELINE_PARALLEL)
    assert optimizer.select_strategy(hinted, on(), 2)[1].pipeline_parallel_size == 2
    with pytest.raises(ValueError, match="2 devices of 4 GiB hold the model in no way"):
        optimizer.select_strategy(usual, on(4.0), 2)
