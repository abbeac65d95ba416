"""The body of ``/v1/embeddings``, read into the contract, and its answer.

Knows nothing of where vectors come from.
"""

from __future__ import annotations

import base64
import sys
from array import array
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import JsonValue, ValidationError

from sagellm_gateway.errors import public
from sagellm_protocol import EmbedRequest, EmbedResponse, SageLLMError

from .body import MODEL_ALIAS, Body, Refused
from .chat import ModelName
from .prompts import read_prompts

NAMES = {"inputs": "input"}
"""API names of the contract's fields."""


class EmbeddingBody(Body):
    """Every parameter of OpenAI's API and vLLM's that is honoured; the others stand in ``refused``."""

    model: ModelName = MODEL_ALIAS
    input: JsonValue
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    user: str | None = None
    normalize: bool = True
    truncate: bool = False
    priority: int = 0

    refused: ClassVar[Mapping[str, Refused]] = {
        "truncate_prompt_tokens": Refused((), "set truncate, which cuts to what the model reads"),
        "add_special_tokens": Refused((True,), "inputs are tokenised as the model was trained"),
        "request_id": Refused((), "send it in the header x-request-id"),
        "metadata": Refused(({},), "nothing is stored here"),
    }

    def request(self, model: str, request_id: str, trace_id: str, most: int) -> EmbedRequest:
        """As the contract has it; arguments as those of a completion.

        Raises:
            SageLLMError: ``INVALID_REQUEST`` in the API's names.
        """
        try:
            return EmbedRequest(
                request_id=request_id,
                trace_id=trace_id,
                model=model,
                inputs=read_prompts(self.input, "input", most),
                dimensions=self.dimensions,
                normalize=self.normalize,
                truncate=self.truncate,
                user=self.user,
                priority=self.priority,
            )
        except ValidationError as error:
            raise public(SageLLMError.from_validation(error), NAMES) from None


def embeddings_answer(response: EmbedResponse, encoding: Literal["float", "base64"]) -> dict[str, Any]:
    """OpenAI's JSON of some vectors; base64 is of little-endian float32."""
    return {
        "object": "list",
        "model": response.model,
        "data": [
            {
                "object": "embedding",
                "index": vector.index,
                "embedding": _base64(vector.values) if encoding == "base64" else vector.values,
            }
            for vector in response.vectors
        ],
        "usage": {"prompt_tokens": response.usage.prompt_tokens, "total_tokens": response.usage.total_tokens},
    }


def _base64(values: tuple[float, ...]) -> str:
    packed = array("f", values)
    if sys.byteorder == "big":
        packed.byteswap()
    return base64.b64encode(packed.tobytes()).decode("ascii")
