"""A request for beam search in flight: each step asks the core for one token more of every beam.

What beams share stands once in the prefix cache, from which each continues; so a search takes its turns among other
requests, may be preempted and aborted like them, and holds nothing between its steps. Knows no transport.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sagellm_core.adapters.base import AdapterRef
from sagellm_core.core.plan import TokenLogprob, TokenSampling
from sagellm_core.core.request import Beginning, CoreOutput, CoreRequest, Ending
from sagellm_core.core.sequence import Finish
from sagellm_core.tokenizer import Tokenizer
from sagellm_protocol.errors import ErrorCode, SageLLMError
from sagellm_protocol.interfaces import RenderedPrompt
from sagellm_protocol.logs import name_of
from sagellm_protocol.metrics import Metrics
from sagellm_protocol.requests import Request
from sagellm_protocol.sampling import SamplingParams

from .beams import BeamSearch
from .form import Parsing
from .job import Job


@dataclass
class _Costs:
    """What its extensions cost together."""

    preemptions: int = 0
    evicted_s: float = 0.0
    peak_mem_mb: float | None = None

    def add(self, ending: Ending) -> None:
        self.preemptions += ending.preemptions
        self.evicted_s += ending.evicted_s
        self.peak_mem_mb = ending.peak_mem_mb


def search_of(params: SamplingParams, sampling: TokenSampling, limit: int, vocab_size: int) -> BeamSearch:
    """The search that a request asks for.

    Args:
        params: As asked; with a ``beam_width``.
        sampling: What they come to in token ids.
        limit: Most tokens that the context leaves room for.
        vocab_size: Tokens there are.

    Raises:
        SageLLMError: ``INVALID_REQUEST`` for more beams than there are tokens to begin them with.
    """
    assert params.beam_width is not None
    if params.beam_width + len(sampling.end_ids) > vocab_size:
        raise SageLLMError(
            ErrorCode.INVALID_REQUEST,
            f"beam_width is {params.beam_width}, more than the vocabulary of {vocab_size} tokens can begin",
            "sampling.beam_width",
        )
    return BeamSearch(
        params.beam_width,
        sampling.end_ids,
        limit if params.max_tokens is None else min(params.max_tokens, limit),
        least=params.min_tokens,
        length_penalty=params.length_penalty,
        early_stopping=params.early_stopping,
        reported=params.logprobs,
    )


class SearchJob(Job):
    """A beam search that is under way.

    Args:
        request: As asked.
        prompt: As rendered.
        tokenizer: The model's.
        tickets: Numbers for what is sent to the core; the first is its own, under which nothing is.
        queued_s: When it was accepted; monotonic seconds.
        parsing: As for :class:`~.job.Job`.
        search: The search.
        vocab_size: Tokens there are.
        adapter: What it goes through besides the model.

    Attributes:
        extending: Tickets of the extensions that have not come back, each with its beam's place.
    """

    def __init__(
        self,
        request: Request,
        prompt: RenderedPrompt,
        tokenizer: Tokenizer,
        tickets: Iterator[int],
        queued_s: float,
        parsing: Parsing | None,
        search: BeamSearch,
        vocab_size: int,
        adapter: AdapterRef | None = None,
    ) -> None:
        super().__init__(request, prompt, tokenizer, next(tickets), queued_s, parsing)
        self.extending: dict[int, int] = {}
        self._search = search
        self._adapter = adapter
        self._tickets = tickets
        self._rows: list[TokenLogprob | None] = []
        self._first: Beginning | None = None
        self._costs = _Costs()
        # The likeliest token is drawn and not looked at: what counts is what is reported beside it.
        self._asked = TokenSampling(temperature=0.0, logprobs=min(search.alternatives, vocab_size))

    def extensions(self) -> list[CoreRequest]:
        """What the core shall do next; nothing while extensions are out, or once the search is over."""
        if self.extending or self.outcome is not None:
            return []
        request, prompt = self.request, list(self._prompt.token_ids)
        asked = []
        for place, beam in enumerate(self._search.running):
            ticket = next(self._tickets)
            self.extending[ticket] = place
            asked.append(
                CoreRequest(
                    ticket=ticket,
                    prompt=[*prompt, *beam.tokens],
                    seeds=[0],
                    max_tokens=1,
                    sampling=self._asked,
                    priority=request.priority,
                    cache_salt=request.cache_salt,
                    goes_on=bool(beam.tokens),
                    name=name_of(request),
                    adapter=self._adapter,
                )
            )
        self._rows = [None] * len(asked)
        return asked

    def take(self, output: CoreOutput) -> bool:
        """Take in one beam's next tokens; with the last of them the search goes on, or is over."""
        ending = output.ending
        if ending is None:
            return False
        if ending.finish in {Finish.FAILED, Finish.REFUSED, Finish.UNREADABLE}:
            return super().take(CoreOutput(output.ticket, 0, ending=ending))
        self._rows[self.extending.pop(output.ticket)] = output.logprobs[0]
        self._first = self._first or output.beginning
        self._costs.add(ending)
        if not self.extending:
            self._search.extend([row for row in self._rows if row is not None])
            if not self._search.running:
                self._tell()
        return False

    def _tell(self) -> None:
        """Have the best sequences be the choices."""
        costs = self._costs
        for choice, (score, beam) in zip(self._choices, self._search.best(), strict=False):
            choice.score = score
            finish, stop = (Finish.STOP, beam.tokens[-1]) if beam.ended else (Finish.LENGTH, None)
            told = CoreOutput(
                self.ticket,
                choice.index,
                list(beam.tokens),
                list(beam.positions),
                beginning=self._first,
                ending=Ending(finish, stop, None, costs.preemptions, costs.evicted_s, 0, 0, costs.peak_mem_mb),
            )
            costs.preemptions, costs.evicted_s = 0, 0.0  # counted once
            super().take(told)
        assert self.outcome is not None, "a search ends with as many sequences as it is wide"

    def _metrics(self, finished_s: float) -> Metrics:
        # Beams share blocks, and each is measured alone: what they hold together is not known.
        return super()._metrics(finished_s).model_copy(update={"kv_used_tokens": None, "kv_used_bytes": None})


def tickets_of(job: object) -> tuple[int, ...]:
    """Of what a search has sent to the core and not had back."""
    return tuple(job.extending) if isinstance(job, SearchJob) else ()
