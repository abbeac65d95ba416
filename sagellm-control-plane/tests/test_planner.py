"""The planner against cases reckoned by hand."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings, strategies as st

from sagellm_control_plane.devices import Device, Link, LinkKind, ModelShape, Wish, kv_bytes, memory_of, plan
from sagellm_protocol import DeviceInfo, ErrorCode, SageLLMError

GIB = 2**30
LLAMA_3_70B = ModelShape.of(
    {
        "num_hidden_layers": 80,
        "hidden_size": 8192,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "intermediate_size": 28672,
        "vocab_size": 128256,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
)
LLAMA_3_8B = ModelShape.of(
    {
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "vocab_size": 128256,
        "torch_dtype": "bfloat16",
    }
)


def devices(count: int, gib: float = 80) -> list[Device]:
    return [
        Device(DeviceInfo(kind="cuda", index=index, name="device", memory_total_bytes=int(gib * GIB)))
        for index in range(count)
    ]


def joined(count: int, kind: LinkKind = LinkKind.NVLINK) -> list[Link]:
    return [Link(a, b, kind) for a, b in itertools.combinations(range(count), 2)]


def test_parameters_and_cache_are_those_of_the_published_models() -> None:
    assert LLAMA_3_70B.params == 70_553_706_496
    assert LLAMA_3_8B.params == 8_030_261_248
    # 2 (keys, values) x 80 layers x 8 heads x 128 x 2 bytes.
    assert kv_bytes(LLAMA_3_70B, Wish()) == 327_680
    mixtral = ModelShape.of(
        {
            "num_hidden_layers": 32,
            "hidden_size": 4096,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "intermediate_size": 14336,
            "vocab_size": 32000,
            "num_local_experts": 8,
        }
    )
    assert mixtral.params == 46_702_792_704


def test_llama_3_70b_on_eight_devices_of_80_gib_is_two_replicas_of_four() -> None:
    # By two, weights are 65.7 of the 72 GiB that may be used, and 8 sequences of 8,192 tokens want 10 GiB for
    # their cache at 163,840 bytes a token. By four, 32.9 + 10 GiB for 16 sequences fit.
    found = plan(LLAMA_3_70B, devices(8), joined(8), Wish(context=8192, concurrency=32))
    assert (found.tensor_parallel, found.pipeline_parallel, found.data_parallel) == (4, 1, 2)
    assert found.memory.weights / GIB == pytest.approx(32.86, abs=0.02)
    assert found.memory.kv == 16 * 8192 * 81_920
    assert found.memory.short == 0
    said = "\n".join(found.reasons)
    assert "70.55 billion parameters" in said
    assert "tensor 2 x pipeline 1 x data 4 does not fit: weights 65.7" in said
    assert "tensor 3: 64 heads are not divisible by it" in said
    assert "over NVLink" in said


def test_a_model_that_fits_one_device_is_replicated() -> None:
    found = plan(LLAMA_3_8B, devices(4), joined(4), Wish(context=8192, concurrency=32))
    assert (found.tensor_parallel, found.pipeline_parallel, found.data_parallel) == (1, 1, 4)
    assert found.memory.weights / GIB == pytest.approx(14.96, abs=0.02)
    assert "nothing crosses" in found.reasons[-1]


def test_quantised_weights_need_fewer_devices() -> None:
    found = plan(LLAMA_3_70B, devices(2), joined(2), Wish(context=8192, concurrency=4, quantization="int4"))
    assert (found.tensor_parallel, found.pipeline_parallel, found.data_parallel) == (1, 1, 2)


def test_without_fast_links_stages_are_preferred_to_tensor_parallel() -> None:
    wish = Wish(context=8192, concurrency=16)
    fast = plan(LLAMA_3_70B, devices(4), joined(4), wish)
    slow = plan(LLAMA_3_70B, devices(4), joined(4, LinkKind.HOST), wish)
    assert (fast.tensor_parallel, fast.pipeline_parallel) == (4, 1)
    assert (slow.tensor_parallel, slow.pipeline_parallel) == (1, 3)


def test_keys_and_values_of_few_heads_are_held_several_times() -> None:
    wish = Wish()
    assert kv_bytes(LLAMA_3_70B, wish, tp=8) == kv_bytes(LLAMA_3_70B, wish, tp=16) == 327_680 // 8


def test_a_refusal_names_what_is_short_and_what_would_fit() -> None:
    with pytest.raises(SageLLMError, match=r"lacks .* GiB a device.*its weights alone do not fit") as refused:
        plan(LLAMA_3_70B, devices(1), (), Wish(context=1024, concurrency=1))
    assert refused.value.code is ErrorCode.UNAVAILABLE
    with pytest.raises(SageLLMError, match=r"\d+ sequences of 8192 tokens would fit"):
        plan(LLAMA_3_70B, devices(4), joined(4), Wish(context=8192, concurrency=1000))
    with pytest.raises(SageLLMError, match="no device"):
        plan(LLAMA_3_8B, [])


def test_what_is_advised_fits() -> None:
    wish = Wish(context=8192, concurrency=1000)
    with pytest.raises(SageLLMError) as refused:
        plan(LLAMA_3_8B, devices(2), joined(2), wish)
    advised = int(str(refused.value.message).rsplit("; ", 1)[1].split(" ")[0])
    assert plan(LLAMA_3_8B, devices(2), joined(2), Wish(context=8192, concurrency=advised)).memory.short == 0


def test_a_config_that_lacks_sizes_is_refused_by_name() -> None:
    with pytest.raises(SageLLMError, match="lacks num_hidden_layers, vocab_size"):
        ModelShape.of({"hidden_size": 64, "num_attention_heads": 4})
    with pytest.raises(SageLLMError, match="kv_lora_rank"):
        ModelShape.of({"kv_lora_rank": 512})


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 16), st.sampled_from([24, 40, 80, 141]), st.integers(1, 200), st.integers(256, 32768))
def test_a_plan_fits_its_devices_and_divides_the_model(count: int, gib: int, concurrency: int, context: int) -> None:
    wish = Wish(context=context, concurrency=concurrency)
    try:
        found = plan(LLAMA_3_70B, devices(count, gib), joined(count), wish)
    except SageLLMError:
        assert memory_of(LLAMA_3_70B, wish, 1, count, 1, int(int(gib * GIB) * wish.usable)).short
        return
    assert found.devices <= count
    assert LLAMA_3_70B.heads % found.tensor_parallel == 0
    assert found.memory == memory_of(
        LLAMA_3_70B,
        wish,
        found.tensor_parallel,
        found.pipeline_parallel,
        found.data_parallel,
        int(int(gib * GIB) * wish.usable),
    )
    assert found.memory.total <= found.memory.available
    assert found.kv_tokens >= context
