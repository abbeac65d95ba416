"""Requests that were submitted and left to the manager: carried out in the background, answers kept for a while."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from datetime import timedelta

from sagellm_control_plane.background import Background
from sagellm_control_plane.service import ControlPlaneService
from sagellm_control_plane.ticket import Hints, Ticket
from sagellm_control_plane.types import RequestMetadata, RequestStatus, now
from sagellm_protocol import (
    EmbedRequest,
    EmbedResponse,
    Request,
    RequestEnding,
    Response,
    SageLLMError,
    collect,
)

KEPT = 1024
"""Requests that are over and may still be asked about."""
Answer = Response | tuple[EmbedResponse, ...]


class Run:
    """One submitted request."""

    def __init__(self, metadata: RequestMetadata, requests: list[Request | EmbedRequest], first: Ticket) -> None:
        self.metadata = metadata
        self.requests = requests
        self.ticket = first
        self.done: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        # An answer that nobody waits for is no mistake.
        self.done.add_done_callback(lambda done: done.cancelled() or done.exception())

    @property
    def status(self) -> RequestStatus:
        """Where it is."""
        if self.done.done():
            if self.done.cancelled():
                return RequestStatus.CANCELLED
            if self.done.exception() is None:
                return RequestStatus.COMPLETED
            cancelled = self.ticket.ending is RequestEnding.CANCELLED
            return RequestStatus.CANCELLED if cancelled else RequestStatus.FAILED
        return RequestStatus.RUNNING if self.ticket.member is not None else RequestStatus.QUEUED


class Runs:
    """Runs by the id their caller gave; of several of one id, the newest is asked about."""

    def __init__(self, plane: ControlPlaneService, background: Background) -> None:
        self._plane = plane
        self._background = background
        self._runs: OrderedDict[str, list[Run]] = OrderedDict()

    def start(self, metadata: RequestMetadata, requests: list[Request | EmbedRequest], hints: Hints) -> None:
        """Accept a request and carry it out in the background.

        Raises:
            SageLLMError: It is refused.
        """
        run = Run(metadata, requests, self._plane.accept(requests[0], hints))
        metadata.queue_time = now()
        self._runs.setdefault(metadata.request_id, []).append(run)
        self._runs.move_to_end(metadata.request_id)
        self._forget()
        self._background.spawn(self._carry_out(run, hints), f"request {metadata.request_id}")

    def get(self, request_id: str) -> Run | None:
        """The newest of that id."""
        runs = self._runs.get(request_id)
        return runs[-1] if runs else None

    def cancel(self, request_id: str) -> bool:
        """End those of that id that are not over."""
        found = False
        for run in self._runs.get(request_id, ()):
            if not run.done.done():
                found = True
                self._plane.cancel_ticket(run.ticket)
        return found

    def waiting(self) -> set[str]:
        """Ids of those that are not over."""
        return {name for name, runs in self._runs.items() if any(not run.done.done() for run in runs)}

    async def _carry_out(self, run: Run, hints: Hints) -> None:
        metadata = run.metadata
        metadata.start_time = now()
        try:
            answer = await self._answer(run, hints)
        except SageLLMError as error:
            if not run.done.done():
                run.done.set_exception(error)
        except BaseException:
            run.done.cancel()
            raise
        else:
            run.done.set_result(answer)
        finally:
            metadata.end_time = now()
            ticket = run.ticket
            if ticket.placed_at is not None and metadata.queue_time is not None:
                waited = timedelta(seconds=ticket.placed_at - ticket.arrived)
                metadata.schedule_time = metadata.queue_time + waited

    async def _answer(self, run: Run, hints: Hints) -> Answer:
        first = run.requests[0]
        if isinstance(first, Request):
            response = await collect(self._plane.run(run.ticket), first.model)
            run.metadata.tokens_generated = response.usage.completion_tokens
            run.metadata.last_token_time = now()
            return response
        vectors = []
        for index, request in enumerate(run.requests):
            assert isinstance(request, EmbedRequest)
            if index:
                run.ticket = self._plane.accept(request, hints)
            vectors.append(await self._plane.run_embed(run.ticket, request))
        return tuple(vectors)

    def _forget(self) -> None:
        while len(self._runs) > KEPT:
            oldest = next((name for name, runs in self._runs.items() if all(run.done.done() for run in runs)), None)
            if oldest is None:
                return
            del self._runs[oldest]
