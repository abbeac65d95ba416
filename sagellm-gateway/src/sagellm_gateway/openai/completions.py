"""The body of ``/v1/completions``, read into one request of the contract a prompt.

Knows nothing of how answers look.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import JsonValue, ValidationError

from sagellm_gateway.errors import public
from sagellm_protocol import Request, SageLLMError

from .body import MODEL_ALIAS, Refused, invalid
from .chat import ModelName
from .look import Look
from .prompts import Prompt, read_prompts
from .sampling import REFUSED, SamplingFields
from .structured import FormFields

DEFAULT_MAX_TOKENS = 16
"""OpenAI's default for this API."""


class CompletionBody(SamplingFields, FormFields):
    """Every parameter of OpenAI's API and vLLM's that is honoured; the others stand in ``refused``."""

    model: ModelName = MODEL_ALIAS
    prompt: JsonValue
    best_of: int | None = None
    echo: bool = False
    logprobs: int | None = None
    add_special_tokens: bool = True

    refused: ClassVar[Mapping[str, Refused]] = {
        **REFUSED,
        "suffix": Refused(("",), "filling in between prompt and suffix is not offered"),
        "prompt_embeds": Refused((), "prompts are text or token ids"),
    }

    def requests(self, model: str, completion_id: str, trace_id: str, most: int) -> list[Request]:
        """As the contract has it, one for each prompt.

        Args:
            model: What ``self.model`` stands for.
            completion_id: Minted for this call; requests are numbered under it.
            trace_id: Names the call in logs of every hop.
            most: Most prompts of one call.

        Raises:
            SageLLMError: ``INVALID_REQUEST`` or ``UNSUPPORTED``, in the API's names.
        """
        self.check_stream()
        self._check_choices()
        structured, _ = self.form()
        try:
            sampling = self.sampling(
                max_tokens=DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens,
                n=max(self.n or 1, self.best_of or 1) if self.picks else None,
                logprobs=0 if self.picks and self.logprobs is None else self.logprobs,
                prompt_logprobs=self.logprobs if self.echo else None,
            )
            return [
                Request(
                    request_id=f"{completion_id}-{number}",
                    trace_id=trace_id,
                    model=model,
                    prompt=prompt if isinstance(prompt, str) else None,
                    prompt_token_ids=None if isinstance(prompt, str) else prompt,
                    add_special_tokens=self.add_special_tokens,
                    structured=structured,
                    sampling=sampling,
                    echo=self.echo,
                    return_token_ids=self.return_token_ids or self.look.tells_prompt,
                    stream=self.stream,
                    **self.routing(),
                )
                for number, prompt in enumerate(self._prompts(most))
            ]
        except ValidationError as error:
            raise public(SageLLMError.from_validation(error), self.names()) from None
        except SageLLMError as error:
            raise public(error, self.names()) from None

    @property
    def width(self) -> int:
        """``best_of`` says it, as vLLM had it before; without, ``n``."""
        return max(self.n or 1, self.best_of or 1)

    @property
    def picks(self) -> bool:
        """Whether more choices are drawn than are answered."""
        return not self.use_beam_search and (self.best_of or 1) > (self.n or 1)

    @property
    def look(self) -> Look:
        """How the answer shall look."""
        return Look(
            as_ids=self.return_tokens_as_token_ids,
            token_ids=self.return_token_ids,
            logprobs=self.logprobs is not None,
            tells_prompt=self.echo and self.logprobs is not None,
            prompt_logprobs=self.prompt_logprobs is not None,
            best=self.n or 1 if self.picks else None,
        )

    def _check_choices(self) -> None:
        if self.best_of is not None and self.best_of < (self.n or 1):
            raise invalid("best_of", f"is {self.best_of}, but n={self.n or 1} choices are to be given; give at least n")
        if self.picks and self.stream:
            raise invalid("best_of", "knows the best at the end; beyond n it needs stream=false")
        if self.echo and self.logprobs is not None and self.prompt_logprobs not in {None, self.logprobs}:
            raise invalid(
                "prompt_logprobs",
                f"is {self.prompt_logprobs} and logprobs is {self.logprobs}; with echo, which reports both in one list,"
                " they must be the same",
            )

    def names(self) -> dict[str, str]:
        """API names of the contract's fields that this body calls otherwise."""
        width = "n" if self.best_of is None else "best_of"
        names = {"structured": self.form()[1], "prompt_token_ids": "prompt", "beam_width": width}
        if self.picks:
            names["n"] = width
        if self.prompt_logprobs is None:
            names["prompt_logprobs"] = "logprobs"  # asked for by both with echo
        return names

    def _prompts(self, most: int) -> tuple[Prompt, ...]:
        return read_prompts(self.prompt, "prompt", most)
