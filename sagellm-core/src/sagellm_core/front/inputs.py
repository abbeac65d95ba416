"""From a request for vectors or scores to what the core reads: texts with their prompts, tokens, lengths.

Knows nothing of engines: it needs neither torch nor a running core.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sagellm_core.loading.pooling import PoolingConfig, chosen_pooling, read_pooling
from sagellm_core.options import pooling_option
from sagellm_core.tokenizer import Tokenizer
from sagellm_core.tokenizer.inputs import Encoded, encode_pairs, encode_texts
from sagellm_core.transport.messages import Ready
from sagellm_protocol.engine import EngineSpec
from sagellm_protocol.errors import ErrorCode, SageLLMError
from sagellm_protocol.requests import EmbedRequest, ScoreRequest

from .renderer import OFFLOAD_CHARACTERS
from .text import check_text


@dataclass(frozen=True)
class InputReader:
    """Reads inputs for one model.

    Attributes:
        tokenizer: The model's.
        pooling: What is put before texts.
        vocab_size: Rows of the model's embedding table; ids beyond it cannot be read.
        max_length: Most tokens of an input.
        size: Dimensions of the model's vectors; ``None`` where it only scores.
        pairs: A query and a document are read together.
    """

    tokenizer: Tokenizer
    pooling: PoolingConfig
    vocab_size: int
    max_length: int
    size: int | None
    pairs: bool

    async def inputs(self, request: EmbedRequest) -> list[Encoded]:
        """The inputs to embed.

        Raises:
            SageLLMError: ``INVALID_REQUEST`` for ids beyond the vocabulary, an input without tokens, or more dimensions
                than there are; ``CONTEXT_LENGTH_EXCEEDED``, naming both lengths.
        """
        if request.dimensions is not None and self.size is not None and request.dimensions > self.size:
            raise SageLLMError(
                ErrorCode.INVALID_REQUEST,
                f"dimensions is {request.dimensions}, but this model's vectors have {self.size}; ask for fewer, or"
                " leave it out",
                "dimensions",
            )
        if sum(map(len, request.inputs)) < OFFLOAD_CHARACTERS:
            return self._inputs(request)
        # The tokenizer lets go of the interpreter while it works, so the event loop goes on.
        return await asyncio.to_thread(self._inputs, request)

    async def queries(self, request: ScoreRequest) -> list[Encoded]:
        """What is read to score documents: each with the query, or first the query and then each.

        Raises:
            SageLLMError: As :meth:`inputs`.
        """
        if len(request.query) + sum(map(len, request.documents)) < OFFLOAD_CHARACTERS:
            return self._queries(request)
        return await asyncio.to_thread(self._queries, request)

    def _inputs(self, request: EmbedRequest) -> list[Encoded]:
        limit = self.max_length if request.truncate else None
        before = self.pooling.plain
        texts = [before + _checked(item, "inputs") for item in request.inputs if isinstance(item, str)]
        encoded = iter(encode_texts(self.tokenizer, texts, limit))
        read = [next(encoded) if isinstance(item, str) else self._given(item, limit) for item in request.inputs]
        return self._fitting(read, "inputs")

    def _queries(self, request: ScoreRequest) -> list[Encoded]:
        limit = self.max_length if request.truncate else None
        query = _checked(request.query, "query")
        documents = [_checked(document, "documents") for document in request.documents]
        if self.pairs:
            return self._fitting(encode_pairs(self.tokenizer, query, documents, limit), "documents")
        texts = [self.pooling.query + query, *(self.pooling.document + document for document in documents)]
        read = encode_texts(self.tokenizer, texts, limit)
        return [*self._fitting(read[:1], "query"), *self._fitting(read[1:], "documents")]

    def _given(self, ids: Sequence[int], limit: int | None) -> Encoded:
        kept = list(ids)
        if limit is not None:
            kept = kept[-limit:] if self.tokenizer.truncation_side == "left" else kept[:limit]
        return Encoded(kept, len(ids))

    def _fitting(self, read: list[Encoded], param: str) -> list[Encoded]:
        for index, one in enumerate(read):
            if not one.ids:
                raise SageLLMError(ErrorCode.INVALID_REQUEST, f"{param}[{index}] is empty: it makes no tokens", param)
            if len(one.ids) > self.max_length:
                raise SageLLMError(
                    ErrorCode.CONTEXT_LENGTH_EXCEEDED,
                    f"{param}[{index}] has {len(one.ids)} tokens, but this model reads {self.max_length}; shorten"
                    " it, or ask to truncate",
                    param,
                )
            if max(one.ids) >= self.vocab_size:
                raise SageLLMError(
                    ErrorCode.INVALID_REQUEST,
                    f"{param}[{index}] has token id {max(one.ids)}, beyond this model's vocabulary of"
                    f" {self.vocab_size}",
                    param,
                )
        return read


def input_reader(spec: EngineSpec, path: Path, core: Ready, tokenizer: Tokenizer) -> InputReader | None:
    """What reads inputs for the model at ``path`` that a core has loaded; ``None`` where it makes no vectors.

    Raises:
        SageLLMError: As :func:`read_pooling`.
    """
    if core.embedding_size is None and not core.scores:
        return None
    pooling = chosen_pooling(read_pooling(path), pooling_option(spec))
    return InputReader(
        tokenizer=tokenizer,
        # Without one beside the model the core has one of its own, which says nothing of prompts either.
        pooling=pooling or PoolingConfig("mean"),
        vocab_size=core.vocab_size,
        max_length=core.max_model_len,
        size=core.embedding_size,
        pairs=core.scores,
    )


def _checked(text: str, param: str) -> str:
    check_text(text, param)
    return text
