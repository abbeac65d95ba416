"""What a prefix costs: computed, found on the device, brought back from host memory, read from disk.

``python benchmarks/offload.py [MODEL] [--dtype TYPE] [--tokens N]``: milliseconds to the first token, medians of one
run.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from typing import Any

from sagellm_core import LLM
from sagellm_protocol import SamplingParams

ONE = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    rng = random.Random(0)
    prompts = [[rng.randrange(100, 40_000) for _ in range(given.tokens + 1)] for _ in range(given.rounds)]
    print(f"{given.model}, {given.dtype}, {given.tokens} tokens of prefix; ms to the first token, and its ratio")
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        # A pool that holds one prompt and a half: the next one evicts it.
        common: dict[str, Any] = {"dtype": given.dtype, "max_model_len": given.tokens + 64}
        with LLM(given.model, kv_offload_dir=folder, **common) as llm:
            pool = llm.info.capabilities.total_blocks
            assert pool is not None
            llm.generate(prompts[0][:100], ONE)
            figures["computed"] = _median(llm, prompts)
            figures["device"] = _median(llm, prompts)
        with LLM(given.model, kv_offload_dir=folder, **common) as llm:
            llm.generate(prompts[0][::-1][:100], ONE)
            figures["disk"] = _median(llm, prompts)
            assert (llm.stats().disk_hit_tokens or 0) >= given.rounds * (given.tokens - 16)
        block = _block_bytes(given.model, common)
        blocks = -(-given.tokens // 16) * 3 // 2
        with LLM(given.model, kv_offload_memory_bytes=1 << 32, kv_cache_memory_bytes=blocks * block, **common) as llm:
            _median(llm, prompts)
            figures["host"] = _median(llm, prompts)
            assert (llm.stats().host_hit_tokens or 0) >= (given.rounds - 1) * (given.tokens - 16)
    for name in ("computed", "disk", "host", "device"):
        print(f"{name:9} {figures[name]:8.1f}  {figures['computed'] / figures[name]:6.1f}x")


def _median(llm: LLM, prompts: list[list[int]]) -> float:
    times = []
    for prompt in prompts:
        began = time.perf_counter()
        llm.generate(prompt, ONE, progress=False)
        times.append(time.perf_counter() - began)
        time.sleep(0.2)  # what is written is not to be measured with what comes next
    return 1000 * statistics.median(times)


def _block_bytes(model: str, common: dict[str, Any]) -> int:
    with LLM(model, **common) as llm:
        stats = llm.stats()
        assert stats.kv_bytes is not None
        assert stats.total_blocks is not None
        return stats.kv_bytes // stats.total_blocks


if __name__ == "__main__":
    main()
