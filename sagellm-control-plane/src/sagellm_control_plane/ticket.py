"""One request's life in the plane: plain values, and the one place that says it is over.

Knows nothing of engines' insides, queues or transports.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeVar

from sagellm_protocol import EmbedRequest, ErrorCode, RenderedPrompt, Request, RequestEnding, SageLLMError, ScoreRequest

from .board import Role
from .interruptible import Interrupted, Interruptible

if TYPE_CHECKING:
    import asyncio

    from .fleet import Member

T = TypeVar("T")
AnyRequest = Request | EmbedRequest | ScoreRequest
RenderKey = tuple[str, int | None]
"""Engines of equal keys read the same tokens out of a request."""
Likeness = tuple[str, str | None, str | None]
"""Identity of the weights, dtype and quantisation."""


class Stage(Enum):
    """Where a request is."""

    RENDERING = "rendering"
    QUEUED = "queued"
    RUNNING = "running"
    ENDED = "ended"


@dataclass(frozen=True)
class Hints:
    """Wishes that the wire request has no field for."""

    prefer_engine: str | None = None
    """Serve it there if that engine can take it now."""
    cost_budget: float | None = None


@dataclass(eq=False)
class Ticket:
    """A request that was accepted. Satisfies :class:`~sagellm_control_plane.observing.Subject`."""

    number: int
    request: AnyRequest
    arrived: float
    deadline: float | None
    """When it expires, on the plane's clock."""
    features: frozenset[str]
    hints: Hints
    prompt_tokens: int
    """Estimated until it is rendered."""
    stage: Stage = Stage.RENDERING
    prompts: dict[RenderKey, RenderedPrompt] = field(default_factory=dict)
    tried: set[str] = field(default_factory=set)
    """Engines that failed it."""
    failed_attempts: int = 0
    placed_tokens: int = 0
    """Prompt tokens it was booked with where it has a place."""
    produced_tokens: int = 0
    """Output tokens of the present attempt."""
    begun: bool = False
    """Whether the present attempt has given output."""
    delivered: bool = False
    """Whether the caller has been given output, after which another engine may only go on with that very answer."""
    likeness: Likeness | None = None
    """Only engines like this may serve it."""
    member: Member | None = None
    """Set by the dispatcher while it has a place there."""
    attempt_id: str | None = None
    ending: RequestEnding | None = None
    """Set once, by the ledger."""
    placed_at: float | None = None
    """When it was last given an engine."""
    first_output_at: float | None = None
    served_by: str | None = None
    """The engine it was last given."""
    turn: asyncio.Future[Member] | None = None
    """Resolved by the dispatcher."""
    beside: Ticket | None = None
    """Its twin on a second engine, while it is open which of them begins first."""
    stand_in: Ticket | None = None
    """The twin that began first: it has the place from which this request's output comes."""
    counted: bool = True
    """Whether its place counts as a request's: not while it is a twin that has not won."""
    _awaited: Interruptible[Any] | None = None
    _verdict: SageLLMError | None = None
    _loss: SageLLMError | None = None

    @property
    def acting(self) -> Ticket:
        """Who has the place from which its output comes."""
        return self.stand_in or self

    def twin(self) -> Ticket:
        """The same request once more, for another engine than those that failed it or have it."""
        assert self.member is not None
        return replace(
            self,
            number=-self.number,
            tried={*self.tried, self.member.engine_id},
            member=None,
            turn=None,
            placed_tokens=0,
            produced_tokens=0,
            begun=False,
            attempt_id=None,
            counted=False,
            _awaited=None,
            _loss=None,
        )

    @property
    def priority(self) -> int:
        """Lower is sooner."""
        return self.request.priority

    @property
    def user(self) -> str | None:
        """Whose it is."""
        return self.request.user

    @property
    def session_id(self) -> str | None:
        """The conversation it belongs to."""
        return self.request.session_id

    @property
    def model(self) -> str:
        """The name it asks for."""
        return self.request.model

    @property
    def adapter(self) -> str | None:
        """The LoRA adapter it asks for."""
        return self.request.adapter

    @property
    def ttft_slo_s(self) -> float | None:
        """Time to the first token that its caller hopes for."""
        slo = self.request.slo
        return None if slo is None or slo.ttft_ms is None else slo.ttft_ms / 1000

    @property
    def tpot_slo_s(self) -> float | None:
        """Time for each later token that its caller hopes for."""
        slo = self.request.slo
        return None if slo is None or slo.tpot_ms is None else slo.tpot_ms / 1000

    @property
    def embeds(self) -> bool:
        """Whether it is answered in one piece."""
        return not isinstance(self.request, Request)

    @property
    def block_hashes(self) -> Sequence[bytes]:
        """Of the full blocks of its prompt, as the engine that rendered it reads it."""
        prompt = next(iter(self.prompts.values()), None)
        return () if prompt is None else prompt.block_hashes

    @property
    def block_size(self) -> int:
        """Tokens in each of those blocks."""
        prompt = next(iter(self.prompts.values()), None)
        return 1 if prompt is None else prompt.block_size

    @property
    def role(self) -> Role:
        """Which part of its work is to be placed."""
        transfer = self.request.kv_transfer if isinstance(self.request, Request) else None
        if transfer is None:
            return Role.BOTH
        return Role.PREFILL if transfer.role == "produce" else Role.DECODE

    @property
    def source(self) -> str | None:
        """The engine that holds its blocks, if another computed its prompt."""
        transfer = self.request.kv_transfer if isinstance(self.request, Request) else None
        return transfer.ticket.source if transfer is not None and transfer.ticket is not None else None

    @property
    def cost_budget(self) -> float | None:
        """What the caller is willing to pay."""
        return self.hints.cost_budget

    @property
    def sequences(self) -> int:
        """Sequences it makes an engine run."""
        return self.request.sampling.n if isinstance(self.request, Request) else 1

    @property
    def needed_tokens(self) -> int:
        """Context that it needs at least; 0 while unknown."""
        if not isinstance(self.request, Request) or not self.prompts:
            return 0
        return self.prompt_tokens + (self.request.sampling.max_tokens or 1)

    def remaining_ms(self, now: float) -> float | None:
        """Time left until the deadline."""
        return None if self.deadline is None else max(1.0, (self.deadline - now) * 1000)

    def interrupt(self, error: SageLLMError, *, final: bool) -> bool:
        """Stop whatever is awaited for this request; only the first final error counts.

        Args:
            error: What its caller is told.
            final: Whether the request is over, rather than only its attempt on one engine.

        Returns:
            Whether an await was interrupted. If not, its caller learns of it when it asks for more.
        """
        if final:
            self._verdict = self._verdict or error
        else:
            self._loss = self._loss or error
        others = (self.beside, self.stand_in) if final else ()
        interrupted = [other.interrupt(error, final=True) for other in others if other is not None]
        if self._awaited is not None:
            self._awaited.interrupt()
        return self._awaited is not None or any(interrupted)

    def check(self) -> None:
        """Raise what :meth:`interrupt` brought. An attempt's loss is raised once, the request's end for ever."""
        if self._verdict is not None:
            raise self._verdict
        if self._loss is not None:
            loss, self._loss = self._loss, None
            raise loss

    def forgive(self) -> None:
        """Forget what befell an attempt that is over."""
        self._loss = None

    async def wait(self, call: Callable[[], Awaitable[T]]) -> T:
        """Await what ``call`` returns, unless the request is interrupted before or meanwhile.

        Raises:
            SageLLMError: The interruption.
        """
        self.check()
        self._awaited = awaited = Interruptible(call())
        try:
            return await awaited
        except Interrupted:
            self.check()
            raise SageLLMError(ErrorCode.INTERNAL, "a request was interrupted without a reason") from None
        finally:
            self._awaited = None


def estimated_tokens(request: AnyRequest) -> int:
    """Prompt tokens by count where tokens were given, else by the rule of thumb of four characters a token."""
    if isinstance(request, Request):
        if request.prompt_token_ids is not None:
            return len(request.prompt_token_ids)
        text = request.prompt or "".join(message.text for message in request.messages or ())
        return math.ceil(len(text) / 4) or 1
    if isinstance(request, EmbedRequest):
        return sum(math.ceil(len(item) / 4) if isinstance(item, str) else len(item) for item in request.inputs) or 1
    return math.ceil(sum(len(request.query) + len(document) for document in request.documents) / 4)
