"""The body of ``/v1/completions``, read into one request of the contract a prompt.

Knows nothing of how answers look.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import JsonValue, ValidationError

from sagellm_gateway.errors import public
from sagellm_protocol import Request, SageLLMError

from .body import MODEL_ALIAS, Refused, invalid, unsupported
from .chat import ModelName
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
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise invalid(
                "best_of", f"must equal n ({self.n or 1}); ask for n choices and pick some (got {self.best_of})"
            )
        if self.echo and self.logprobs is not None:
            raise unsupported(
                "echo",
                "is not offered together with logprobs; leave one of them out: logprobs reports the tokens produced,"
                " and prompt_logprobs=N, with stream=false, those of the prompt, in choices[].prompt_logprobs",
            )
        structured, _ = self.form()
        try:
            sampling = self.sampling(
                max_tokens=DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens,
                logprobs=self.logprobs,
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
                    stream=self.stream,
                    **self.routing(),
                )
                for number, prompt in enumerate(self._prompts(most))
            ]
        except ValidationError as error:
            raise public(SageLLMError.from_validation(error), self.names()) from None
        except SageLLMError as error:
            raise public(error, self.names()) from None

    def names(self) -> dict[str, str]:
        """API names of the contract's fields that this body calls otherwise."""
        return {"structured": self.form()[1], "prompt_token_ids": "prompt"}

    def _prompts(self, most: int) -> tuple[Prompt, ...]:
        return read_prompts(self.prompt, "prompt", most)
