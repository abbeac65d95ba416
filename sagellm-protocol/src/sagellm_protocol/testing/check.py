"""Whether a stream of events keeps the contract's promises.

Needs no test runner. Knows nothing of who made the stream.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Sequence

from sagellm_protocol.events import (
    DeltaEvent,
    EndEvent,
    ErrorEvent,
    StartEvent,
    StreamEvent,
    is_terminal,
    parse_event,
)
from sagellm_protocol.requests import Request


async def read_all(events: AsyncIterable[StreamEvent]) -> list[StreamEvent]:
    """Every event of a stream."""
    return [event async for event in events]


def check_stream(events: Sequence[StreamEvent], request: Request | None = None) -> EndEvent | ErrorEvent:
    """Check a whole stream, and return the event that closes it.

    Args:
        events: All of it, in order.
        request: What was asked, so that the answer can be held against it.

    Raises:
        AssertionError: It breaks the contract; the message says how.
    """
    _require(bool(events), "the stream is empty; it must close with a terminal event")
    *body, last = events
    _require(is_terminal(last), f"the stream stops at a {last.type!r} event without a terminal one")
    _require(not any(is_terminal(event) for event in body), "something follows a terminal event")
    ids = {event.request_id for event in events}
    expected = ids if request is None else {request.request_id}
    _require(len(ids) == 1 and ids == expected, f"events carry the request ids {sorted(ids)}")
    for event in events:
        _require(parse_event(event.to_wire()) == event, f"this event does not survive its own JSON: {event!r}")
    starts = [event for event in body if isinstance(event, StartEvent)]
    _require(len(starts) == (1 if body else 0) and body[:1] == starts, "the first event, and no other, is a start")
    _check_deltas([event for event in body if isinstance(event, DeltaEvent)], request)
    if isinstance(last, EndEvent):
        _require(bool(starts), "an answer was completed that was never started")
        _check_end(last, starts[0], [event for event in body if isinstance(event, DeltaEvent)], request)
        return last
    assert isinstance(last, ErrorEvent)
    return last


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise AssertionError(message)


def _check_deltas(deltas: Sequence[DeltaEvent], request: Request | None) -> None:
    calls: set[tuple[int, int]] = set()
    for delta in deltas:
        for piece in delta.tool_calls:
            first = (delta.index, piece.index) not in calls
            calls.add((delta.index, piece.index))
            _require(not first or bool(piece.id and piece.name), "a tool call's first piece lacks its id or name")
        if request is not None:
            asked = request.sampling.logprobs is not None
            _require(delta.index < request.sampling.n, f"choice {delta.index} of n={request.sampling.n}")
            _require(asked or delta.logprobs is None, "log-probabilities that nobody asked for")
            _require(
                not asked or len(delta.logprobs or ()) == len(delta.token_ids),
                "a delta's log-probabilities are not one for each of its tokens",
            )


def _check_end(end: EndEvent, start: StartEvent, deltas: Sequence[DeltaEvent], request: Request | None) -> None:
    indices = [choice.index for choice in end.choices]
    n = len(indices) if request is None else request.sampling.n
    _require(indices == list(range(n)), f"the end lists the choices {indices}, not 0 to {n - 1}")
    _require({delta.index for delta in deltas} <= set(indices), "a delta belongs to no choice of the end")
    usage, produced = end.usage, dict.fromkeys(indices, 0)
    for delta in deltas:
        produced[delta.index] += len(delta.token_ids)
    # An engine behind a foreign API may not know token ids at all.
    if any(produced.values()):
        _require(
            sum(produced.values()) == usage.completion_tokens,
            f"deltas hold {sum(produced.values())} tokens and usage counts {usage.completion_tokens}",
        )
    _require(start.prompt_tokens == usage.prompt_tokens, "start and usage disagree about the prompt's tokens")
    for reported in (start.prompt_token_ids, start.prompt_logprobs):
        _require(reported is None or len(reported) == start.prompt_tokens, "not one of each prompt token is reported")
    _require(usage.cached_tokens <= usage.prompt_tokens, "more tokens cached than the prompt has")
    times = end.timestamps
    reached = [at for at in (times.queued, times.scheduled, times.first_token, times.finished) if at is not None]
    _require(reached == sorted(reached), f"stations were reached out of order: {times}")
    if request is not None:
        _require(
            (start.prompt_token_ids is not None) == request.return_token_ids, "the prompt's ids come when asked for"
        )
        searched = request.sampling.beam_width is not None
        _require(all((choice.score is not None) == searched for choice in end.choices), "scores are beam search's")
        _check_limits(end, deltas, produced, request)


def _check_limits(end: EndEvent, deltas: Sequence[DeltaEvent], produced: dict[int, int], request: Request) -> None:
    sampling = request.sampling
    limit = sampling.max_tokens
    _require(limit is None or max(produced.values()) <= limit, f"more than max_tokens={limit}: {produced}")
    for choice in end.choices:
        if isinstance(choice.stop_reason, str):
            text = "".join(delta.text for delta in deltas if delta.index == choice.index)
            _require(choice.stop_reason in sampling.stop, f"stopped at {choice.stop_reason!r}, which was not asked for")
            _require(
                text.endswith(choice.stop_reason) == sampling.include_stop_str_in_output
                or choice.stop_reason in text[: -len(choice.stop_reason)],
                f"the text ends in {text[-20:]!r} after stopping at {choice.stop_reason!r}",
            )
