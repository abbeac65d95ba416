"""A model of ``transformers`` behind the interface that models of ours have.

Its logits are made by its own head: the class that holds the bare model is asked for them with the hidden states put in
the bare model's place, so that scaling and bounding are its own too. Knows nothing of slots, schedules or sampling.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from sagellm_core.layers.linear import Sharding
from sagellm_core.loading.base import Checkpoint
from sagellm_core.models.base import Rows
from sagellm_protocol.backend import AttentionPlan, Backend, KVCache, KVSpec
from sagellm_protocol.devices import DType
from sagellm_protocol.errors import ErrorCode, SageLLMError

from . import examine
from .attention import PAGED, RECORDED, Record, Step, register, tell
from .build import FAILURES, build, refusal

logger = logging.getLogger(__name__)


class _Hidden(tuple[torch.Tensor, ...]):
    """Hidden states alone, as bare models give them; whatever else they may give is absent."""

    @property
    def last_hidden_state(self) -> torch.Tensor:
        return self[0]

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class _InPlace(torch.nn.Module):
    """Stands where the bare model stood, and gives back the hidden states it is given."""

    def forward(self, *ignored: Any, inputs_embeds: torch.Tensor, **also_ignored: Any) -> _Hidden:
        return _Hidden((inputs_embeds,))


class Foreign:
    """Any causal language model whose modelling code calls attention by the ``AttentionInterface``.

    Args:
        checkpoint: Configuration and weights.
        ops: A backend whose tensors are torch's.
        dtype: Type that is computed in.
        quantization: Must be ``None``.

    Raises:
        SageLLMError: ``UNSUPPORTED`` for a model that cannot be run so, or not on this backend, saying why;
            ``INVALID_REQUEST`` naming tensors that are missing, left over or of another shape.
    """

    def __init__(
        self, checkpoint: Checkpoint, ops: Backend[Any], dtype: DType, quantization: str | None = None
    ) -> None:
        architecture = checkpoint.config.architecture
        like = ops.empty((1,), dtype)
        if not isinstance(like, torch.Tensor):
            raise refusal(checkpoint, f"backend {ops.name!r} computes with other tensors than torch's")
        if quantization is not None:
            raise SageLLMError(
                ErrorCode.UNSUPPORTED,
                f"quantization {quantization!r} is not offered for {architecture}, which runs through transformers'"
                " own code; leave it out",
                "quantization",
            )
        register()
        self._ops = ops
        self._whole = build(checkpoint, ops, like)
        self._told = tell(self._whole)
        self.weight_bytes = _bytes(self._whole)
        self.varying = (f"the whole of {architecture}",)  # torch's operations throughout
        self.sharding: Mapping[str, Sharding] = dict.fromkeys(checkpoint.names(), Sharding.REPLICATED)
        try:
            self._prepare(checkpoint, dtype)
        except examine.Unsuitable as error:
            raise refusal(checkpoint, str(error)) from error
        except FAILURES as error:
            reason = f"its modelling code does not run without a cache of its own ({type(error).__name__}: {error})"
            raise refusal(checkpoint, reason) from error
        logger.warning("%s has no file here and runs through transformers' own code, which is slower", architecture)

    def _prepare(self, checkpoint: Checkpoint, dtype: DType) -> None:
        """Find out what layers keep, put attention of ours in, and see that it changes nothing."""
        prompts = examine.prompts(checkpoint.config.vocab_size)
        self._whole.set_attn_implementation(RECORDED)
        expected, record = [], Record()
        for prompt in prompts:
            self._told.now = record = Record()
            ids = torch.tensor([prompt], device=self._whole.device)
            positions = torch.arange(len(prompt), device=ids.device)[None]
            expected.append(self._whole(input_ids=ids, position_ids=positions, use_cache=False).logits[0])
        self._places, self._specs = examine.specs_of(record, checkpoint.config.max_position_embeddings)
        self._whole.set_attn_implementation(PAGED)
        self._bare = _take_out(self._whole)
        compute = examine.paged(self._logits_of, self._ops, self._specs, dtype)
        examine.compare(expected, compute(prompts))

    def _logits_of(self, ids: Any, positions: Any, cache: KVCache, plan: AttentionPlan) -> torch.Tensor:
        return self.logits(self.forward(ids, positions, cache, plan))

    @property
    def kv_specs(self) -> tuple[KVSpec, ...]:
        """What each layer with attention keeps of a token."""
        return self._specs

    def forward(
        self, ids: Any, positions: Any, cache: KVCache, plan: AttentionPlan, read: Rows | None = None
    ) -> torch.Tensor:
        """Compute a step: all its sequences lie one after another in what the modelling code takes for one.

        See :meth:`~sagellm_core.models.base.Model.forward`.
        """
        self._told.now = Step(self._ops, cache, plan, self._places)
        whole = {"input_ids": ids.long()[None], "position_ids": positions.long()[None]}
        try:
            hidden: torch.Tensor = self._bare(**whole, use_cache=False)[0]
        finally:
            self._told.now = None  # it holds the cache
        return hidden[0] if read is None else self._ops.take_rows(hidden[0], read)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Scores of every token: ``[R, E]`` to ``[R, V]``."""
        scores: torch.Tensor = self._whole(inputs_embeds=hidden[None], use_cache=False).logits[0]
        return scores


def _take_out(whole: PreTrainedModel) -> torch.nn.Module:
    """The model without its head, in whose place something stands that gives back hidden states."""
    candidates = (whole.get_decoder(), whole.base_model, *whole.children())
    bare = next((found for found in candidates if isinstance(found, PreTrainedModel) and found is not whole), None)
    if bare is None:
        raise examine.Unsuitable("its bare model cannot be told from its head")
    name = next(name for name, module in whole.named_modules() if module is bare)
    parent, _, last = name.rpartition(".")
    setattr(whole.get_submodule(parent), last, _InPlace())
    return bare


def _bytes(model: PreTrainedModel) -> int:
    tensors = {tensor.data_ptr(): tensor.nbytes for tensor in (*model.parameters(), *model.buffers())}
    return sum(tensors.values())
