"""One choice of a request in the front: the core's tokens to text, stop strings, what the text says, log-probabilities.

Knows nothing of other choices, transports or dialects.
"""

from __future__ import annotations

from collections.abc import Sequence

from sagellm_core.core.plan import TokenLogprob as CoreLogprob
from sagellm_core.core.request import Ending
from sagellm_core.core.sequence import Finish
from sagellm_core.tokenizer import Tokenizer
from sagellm_protocol.events import ChoiceEnd, DeltaEvent, FinishReason, PositionLogprobs, TokenLogprob
from sagellm_protocol.sampling import SamplingParams

from .detokenizer import Detokenizer
from .form import Parsing
from .output import Found
from .stop import StopMatcher


class Choice:
    """What has become of one choice.

    Args:
        request_id: Of its request.
        index: Which choice.
        params: Of its request.
        tokenizer: The model's.
        prompt: The prompt's token ids.
        parsing: How calls and reasoning are told from the answer, where there may be any.

    Attributes:
        num_tokens: Tokens counted so far; those after a stop string are not.
        num_reasoning: How many of them are reasoning, the marks around it included.
        stop: The stop string that was met.
        enough: What was wanted is there, and what the core still sends is dropped: a stop string was met, the one
            call that was wanted is complete, or no token was wanted at all.
        first_s, last_s: When its first and its latest tokens came; monotonic seconds.
        longest_gap_s: Longest time between two arrivals of tokens.
        ending: How it ended in the core, once it has.
        score: Beam search's, if it is the result of one.
    """

    def __init__(
        self,
        request_id: str,
        index: int,
        params: SamplingParams,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        parsing: Parsing | None = None,
    ) -> None:
        self.index = index
        self.num_tokens = 0
        self.num_reasoning = 0
        self.stop: str | None = None
        self.enough = params.max_tokens == 0
        self.score: float | None = None
        self.first_s: float | None = None
        self.last_s: float | None = None
        self.longest_gap_s = 0.0
        self.ending: Ending | None = None
        self._request_id = request_id
        self._params = params
        self._tokenizer = tokenizer
        self._detokenizer = Detokenizer(
            tokenizer,
            skip_special_tokens=params.skip_special_tokens,
            shown=frozenset() if parsing is None else parsing.shown,
            prompt=prompt,
        )
        self._parser = None if parsing is None else parsing.parser()
        self._matcher = StopMatcher(params.stop, include=params.include_stop_str_in_output) if params.stop else None

    def take(
        self, token_ids: list[int], logprobs: list[CoreLogprob], ending: Ending | None, now_s: float
    ) -> DeltaEvent | None:
        """Take in what one step brought; the event it makes, if it says anything."""
        self.ending = ending
        if self.enough:
            return None
        if token_ids:
            self._note_time(now_s)
        text, taken = self._read(token_ids, ending)
        self.num_tokens += taken
        if ending is not None and not self.enough:
            text += self._rest()
        found = Found(text)
        if self._parser is not None:
            if ending is not None or self.stop is not None:
                self._parser.flush()
            found = self._parser.take()
        if not taken and not any(found):
            return None
        return DeltaEvent(
            request_id=self._request_id,
            index=self.index,
            text=found.text,
            reasoning=found.reasoning,
            tool_calls=found.tool_calls,
            token_ids=tuple(token_ids[:taken]),
            logprobs=self._positions(token_ids[:taken], logprobs) if self._params.logprobs is not None else None,
        )

    def end(self) -> ChoiceEnd:
        """How it ended, for the request's end."""
        assert self.ending is not None
        token = self.ending.stop_token
        reason = self.stop if self.stop is not None else token if token in self._params.stop_token_ids else None
        if self._params.max_tokens == 0:
            reason = None  # of a token that nobody was to see
        return ChoiceEnd(
            index=self.index,
            finish_reason=self._finish_reason(self.ending.finish),
            stop_reason=reason,
            score=self.score,
        )

    def _finish_reason(self, finish: Finish) -> FinishReason:
        if self._params.max_tokens == 0:
            return FinishReason.LENGTH
        if not self.enough and finish is not Finish.STOP:
            return FinishReason.LENGTH
        # A call that a stop string broke off is not to be made.
        if self._parser is not None and self._parser.num_calls and not (self._parser.calling and self.stop is not None):
            return FinishReason.TOOL_CALLS
        return FinishReason.STOP

    def _read(self, token_ids: list[int], ending: Ending | None) -> tuple[str, int]:
        """Text of new tokens that is not for the parser, and how many of them count."""
        shown = token_ids
        if ending is not None and ending.stop_token is not None and not self._shows(ending.stop_token):
            shown = token_ids[:-1]
        if self._matcher is None and self._parser is None:
            return self._detokenizer.push(shown), len(token_ids)
        pieces = []
        for taken, token_id in enumerate(shown, start=1):
            pieces.append(self._parse(self._match(self._detokenizer.push([token_id]), taken)))
            if self.enough:
                return "".join(pieces), taken
        return "".join(pieces), len(token_ids)

    def _match(self, text: str, taken: int) -> str:
        """``text`` as far as stop strings let it be known."""
        if self._matcher is None or self.num_tokens + taken <= self._params.min_tokens:
            return text
        found = self._matcher.push(text)
        if found.stop is not None:
            self.stop = found.stop
            self.enough = True
        return found.text

    def _parse(self, text: str) -> str:
        """One token's text; what the parser does not take."""
        parser = self._parser
        if parser is None:
            return text
        thought = parser.thinking
        if text:
            parser.push(text)
        self.num_reasoning += thought or parser.thinking
        self.enough = self.enough or parser.enough
        return ""

    def _shows(self, stop_token: int) -> bool:
        return self._params.include_stop_str_in_output and stop_token in self._params.stop_token_ids

    def _rest(self) -> str:
        """What was held back, now that nothing more will come."""
        text = self._detokenizer.flush()
        if self._matcher is not None:
            found = self._matcher.push(text)
            self.stop = found.stop
            self.enough = found.stop is not None
            text = found.text if self.enough else found.text + self._matcher.flush()
        if self._parser is None:
            return text
        self._parser.push(text)
        return ""

    def _note_time(self, now_s: float) -> None:
        if self.last_s is None:
            self.first_s = now_s
        else:
            self.longest_gap_s = max(self.longest_gap_s, now_s - self.last_s)
        self.last_s = now_s

    def _positions(self, token_ids: list[int], logprobs: list[CoreLogprob]) -> tuple[PositionLogprobs, ...]:
        return tuple(map(self._position, token_ids, logprobs))

    def _position(self, token_id: int, logprob: CoreLogprob) -> PositionLogprobs:
        return position_logprobs(self._tokenizer, token_id, logprob)


def position_logprobs(tokenizer: Tokenizer, token_id: int, logprob: CoreLogprob) -> PositionLogprobs:
    """A token's log-probability and its alternatives, with their texts."""
    text, raw = _spelled(tokenizer, token_id)
    return PositionLogprobs(
        token_id=token_id,
        token=text,
        bytes=raw,
        logprob=logprob.logprob,
        rank=logprob.rank,
        top=tuple(
            _alternative(tokenizer, other, value, rank) for rank, (other, value) in enumerate(logprob.top, start=1)
        ),
    )


def _alternative(tokenizer: Tokenizer, token_id: int, logprob: float, rank: int) -> TokenLogprob:
    text, raw = _spelled(tokenizer, token_id)
    return TokenLogprob(token_id=token_id, token=text, bytes=raw, logprob=logprob, rank=rank)


def _spelled(tokenizer: Tokenizer, token_id: int) -> tuple[str, tuple[int, ...]]:
    raw = tokenizer.token_bytes(token_id)
    return raw.decode(errors="replace"), tuple(raw)
