"""The core's loop, driven through a channel that a test writes: what it does while there is nothing to do."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path

import pytest

from fake_model import build_fake, fake_spec
from sagellm_core.core.block_manager import BlockManager
from sagellm_core.core.loop import CoreBroken, EngineCore
from sagellm_core.core.plan import TokenSampling
from sagellm_core.core.request import CoreRequest
from sagellm_core.transport.messages import Add, CoreMessage, FrontMessage, Outputs, Stop
from sagellm_core.transport.serve import serve


class Written:
    """A channel that brings one request, and once that has ended two seconds of nothing, then the end.

    Args:
        core: Whose.
        then: Done as soon as the request has ended.
    """

    def __init__(self, core: EngineCore, then: Callable[[], object]) -> None:
        self.sent: list[CoreMessage] = []
        self._then = then
        self._core = core
        self._arrivals = self._write()

    def receive(self, timeout_s: float) -> Sequence[tuple[Hashable, FrontMessage]]:
        return next(self._arrivals)

    def wake(self) -> None:
        raise AssertionError("nobody is waited for")

    def send(self, front: Hashable, message: CoreMessage) -> None:
        self.sent.append(message)

    def _write(self) -> Iterator[list[tuple[Hashable, FrontMessage]]]:
        yield [(0, Add(CoreRequest(0, [5, 6, 7], [1], 4, TokenSampling(temperature=0.0))))]
        while self._core.has_work:
            yield []
        self._then()
        yield []
        yield []
        yield [(0, Stop())]


@pytest.fixture
def core(tmp_path: Path) -> EngineCore:
    return build_fake(fake_spec("inline"), tmp_path)


def test_an_idle_core_whose_books_balance_goes_on(core: EngineCore) -> None:
    channel = Written(core, lambda: None)
    serve(core, channel)
    produced = [output for message in channel.sent if isinstance(message, Outputs) for output in message.outputs]
    assert sum(len(output.token_ids) for output in produced) == 4


def test_an_idle_core_whose_books_do_not_balance_ends_by_itself(core: EngineCore) -> None:
    def lose_a_block() -> None:
        assert isinstance(core._blocks, BlockManager)
        core._blocks.pools[0].allocate(1)  # and nobody has it

    with pytest.raises(CoreBroken, match=r"do not balance: block \d+ counts 1 references but 0 sequences hold it"):
        serve(core, Written(core, lose_a_block))
