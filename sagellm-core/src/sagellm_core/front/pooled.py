"""One request for vectors in flight in the front: what has come of each input, and how it ended.

Knows nothing of text, and no transport.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Sequence
from operator import mul

from sagellm_core.core.request import CoreOutput
from sagellm_core.core.sequence import Finish
from sagellm_protocol.errors import ErrorCode, SageLLMError
from sagellm_protocol.events import Usage
from sagellm_protocol.interfaces import RequestEnding
from sagellm_protocol.requests import EmbedRequest, ScoreRequest

Values = Sequence[float]


class PooledJob:
    """A request for vectors or scores that was sent to the core.

    Args:
        request: As asked.
        ticket: The core's number for it.
        lengths: Tokens of each input.

    Attributes:
        outcome: How it ended, once it has; nothing changes it after.
        expiry: The timer of its deadline.
    """

    def __init__(self, request: EmbedRequest | ScoreRequest, ticket: int, lengths: Sequence[int]) -> None:
        self.request = request
        self.ticket = ticket
        self.outcome: RequestEnding | None = None
        self.expiry: asyncio.TimerHandle | None = None
        self._tokens = sum(lengths)
        self._cached = 0
        self._vectors: list[Values | None] = [None] * len(lengths)
        self._left = len(lengths)
        self._error: SageLLMError | None = None
        self._over = asyncio.Event()

    @property
    def usage(self) -> Usage:
        """What it took."""
        return Usage(prompt_tokens=self._tokens, cached_tokens=self._cached)

    async def vectors(self) -> list[Values]:
        """One an input, in their order; waits for the last.

        Raises:
            SageLLMError: It failed.
        """
        await self._over.wait()
        if self._error is not None:
            raise self._error
        return [vector for vector in self._vectors if vector is not None]

    def take(self, output: CoreOutput) -> bool:
        """Take in what one step brought for one input.

        Returns:
            Whether the core may stop working on it early: never, as it ends with its vector.
        """
        if self.outcome is not None or output.ending is None:
            return False
        if output.vector is None:
            self.fail(_failure(output))
            return False
        values = array("f")
        values.frombytes(output.vector)
        self._vectors[output.index] = values.tolist()
        self._cached += 0 if output.beginning is None else output.beginning.cached_tokens
        self._left -= 1
        if not self._left:
            self._close(RequestEnding.COMPLETED)
        return False

    def fail(self, error: SageLLMError) -> None:
        """End it with an error."""
        if self.outcome is None:
            self._error = error
            self._close(RequestEnding.of(error.code))

    def abandon(self) -> None:
        """End it as cancelled: nobody waits for it any more."""
        self.fail(SageLLMError(ErrorCode.CANCELLED, "the caller went away"))

    def _close(self, outcome: RequestEnding) -> None:
        self.outcome = outcome
        if self.expiry is not None:
            self.expiry.cancel()
        self._over.set()


def cosines(query: Values, documents: Sequence[Values]) -> tuple[float, ...]:
    """How alike a query's vector and each document's are, all of length one."""
    return tuple(sum(map(mul, query, document)) for document in documents)


def _failure(output: CoreOutput) -> SageLLMError:
    assert output.ending is not None
    if output.ending.finish is Finish.CANCELLED:
        return SageLLMError(ErrorCode.CANCELLED, "the request was aborted")
    if output.ending.finish is Finish.UNREADABLE:
        return SageLLMError(ErrorCode.INVALID_REQUEST, output.ending.message or "unreadable adapter", "adapter")
    why = output.ending.message or "the KV cache has no further block for it; raise kv_cache_memory_bytes"
    return SageLLMError(ErrorCode.ENGINE_FAILED, f"input {output.index} could not be read: {why}")
