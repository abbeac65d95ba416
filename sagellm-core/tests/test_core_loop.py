from __future__ import annotations

from fake_executor import EOS, FULL, VOCAB, FakeExecutor, alone

from sagellm_core.core.loop import EngineCore
from sagellm_core.core.plan import TokenSampling
from sagellm_core.core.request import CoreRequest
from sagellm_core.core.sizing import CoreLimits


def test_smoke():
    core = EngineCore(FakeExecutor(), CoreLimits(16, 4, 4, 8, 60))
    got = {}
    prompts = {i: [(i * 7 + j) % VOCAB for j in range(3 + i * 4)] for i in range(6)}
    for i, p in prompts.items():
        core.add(CoreRequest(i, p, [1], 20))
    n = 0
    while core.has_work:
        for out in core.step().get(None, []):
            got.setdefault(out.ticket, []).extend(out.token_ids)
        core.check_integrity(); n += 1
    print(n, core.stats())
    assert got == {i: alone(p, 20) for i, p in prompts.items()}
