"""Prompts before they are routed: which engine's renderer to ask, and what to do when it does not answer.

Knows nothing of templates or tokens' meaning.
"""

from __future__ import annotations

from sagellm_protocol import ErrorCode, RenderedPrompt, Request, SageLLMError

from .fleet import Fleet, Member
from .interruptible import Interrupted, Interruptible
from .relay import broken
from .ticket import Ticket

IMPATIENT_S = 1.0
"""Wait for the first engine asked while there are others; the next has all the time there is, lest load breed load."""


class RenderDesk:
    """Renders each prompt once for all engines that read it alike."""

    def __init__(self, fleet: Fleet, timeout_s: float) -> None:
        self._fleet = fleet
        self._timeout_s = timeout_s

    async def render(self, request: Request, among: tuple[Member, ...]) -> tuple[RenderedPrompt, Member]:
        """Render with the engine that has the widest context, and among equals the fewest renderings under way.

        An engine that hangs so collects few requests, and those are taken to another when it does not answer.

        Args:
            request: What to render.
            among: Engines to ask.

        Returns:
            The prompt, and the engine that rendered it.

        Raises:
            SageLLMError: The renderer's refusal; ``UNAVAILABLE`` when none of them answers.
        """
        left = list(among)
        limit = min(self._timeout_s, IMPATIENT_S) if len(left) > 1 else self._timeout_s
        error: SageLLMError | None = None
        while left:
            member = min(left, key=_eagerness)
            left.remove(member)
            try:
                return await self._ask(member, request, limit), member
            except SageLLMError as refusal:
                limit = self._timeout_s
                if not refusal.retryable:
                    raise
                error = refusal
        raise error or SageLLMError(ErrorCode.UNAVAILABLE, f"no engine can render a prompt for {request.model!r} now")

    async def prompt_for(self, ticket: Ticket, member: Member) -> RenderedPrompt:
        """The prompt as ``member`` reads it, whose engine reads otherwise than the one that was asked first.

        Raises:
            SageLLMError: See :meth:`render`.
        """
        assert isinstance(ticket.request, Request)
        prompt = ticket.prompts[member.render_key] = await self._ask(member, ticket.request, self._timeout_s)
        return prompt

    async def _ask(self, member: Member, request: Request, limit_s: float) -> RenderedPrompt:
        if member.engine is None:
            raise SageLLMError(ErrorCode.UNAVAILABLE, f"engine {member.engine_id} has not started")
        try:
            rendering = Interruptible(member.engine.renderer.render(request), limit_s)
            # Interrupted too when the engine is found dead.
            member.renders.add(rendering)
            try:
                return await rendering
            finally:
                member.renders.discard(rendering)
        except Interrupted:
            pass
        except SageLLMError:
            raise
        except Exception as error:
            raise broken(member, error) from error
        member.poke.set()
        raise SageLLMError(
            ErrorCode.UNAVAILABLE, f"engine {member.engine_id} did not render a prompt within {limit_s:g} s"
        )


def _eagerness(member: Member) -> tuple[bool, int, int]:
    return (member.suspect, -(member.capabilities.max_model_len or 0), len(member.renders))
