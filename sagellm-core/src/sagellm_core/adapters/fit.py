"""From an adapter's modules to the projections of the model at hand, some of which are several modules stacked.

Knows nothing of files or threads.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from sagellm_core.layers import raw as rearrange
from sagellm_core.layers.adapted import Adaptable, Adapting
from sagellm_core.loading.errors import corrupt, unsupported
from sagellm_protocol.backend import Backend, LowRank
from sagellm_protocol.devices import DType

from .folder import AdapterFolder, Pair

_OF_MIXTURES = frozenset({"mlp", "block_sparse_moe", "experts"})
"""Modules within which models have experts."""
_TABLES = frozenset({"lm_head", "embed_out", "embed_tokens", "embed_in", "wte", "wpe", "word_embeddings"})

Parts = Mapping[int, Pair]
"""What adapts one projection, by which of its stacked modules it is for."""


def fit(adapter: AdapterFolder, adapting: Adapting, largest_rank: int) -> Mapping[Adaptable, Parts]:
    """Find the projection of each of an adapter's modules.

    Raises:
        SageLLMError: ``UNSUPPORTED`` for a module that cannot be adapted here, or of too high a rank;
            ``INVALID_REQUEST`` for matrices of another shape than the model's.
    """
    fitted: dict[Adaptable, dict[int, Pair]] = {}
    for module, pair in adapter.pairs.items():
        projection, part = _target(adapter, adapting, module)
        rank = pair.down.shape[0]
        if rank > largest_rank:
            raise unsupported(
                adapter.path,
                f"{module!r} has rank {rank}; this engine takes ranks up to max_adapter_rank={largest_rank}",
            )
        for raw, shape in ((pair.down, (rank, projection.columns)), (pair.up, (projection.rows[part], rank))):
            if raw.shape != shape:
                raise corrupt(
                    adapter.path,
                    f"tensor {raw.name!r} is {raw.shape}; the model's {projection.names[part]!r} makes it {shape}: it"
                    " was trained on another model",
                )
        fitted.setdefault(projection, {})[part] = pair
    return fitted


def make(parts: Parts, projection: Adaptable, ops: Backend[Any], dtype: DType) -> LowRank[Any]:
    """What the parts add to a projection, on the device."""
    begins = [sum(projection.rows[:part]) for part in sorted(parts)]
    downs, ups = [], []
    for part in sorted(parts):
        pair = parts[part]
        # Rearranged on the host, they are copies: nothing goes on reading the file, which may change or go.
        downs.append(ops.tensor(rearrange.scale(pair.down, 1.0), dtype))
        up = rearrange.scale(pair.up, pair.scale)
        ups.append(ops.tensor(up if projection.order is None else rearrange.reorder_rows(up, projection.order), dtype))
    return LowRank(ops.concat(downs, 0), tuple(ups), tuple(begins))


def _target(adapter: AdapterFolder, adapting: Adapting, module: str) -> tuple[Adaptable, int]:
    targets = adapting.targets
    # A bare model and the one with a head differ in the name they put before the rest.
    root = adapting.root
    for name in (module, f"{root}{module}", module.removeprefix(root)):
        if name in targets:
            return targets[name]
    if adapting.mixture and not _OF_MIXTURES.isdisjoint(module.split(".")):
        raise unsupported(
            adapter.path, f"adapts {module!r}; where a model has experts, only its attention can be adapted"
        )
    if module.rsplit(".", 1)[-1] in _TABLES:
        raise unsupported(adapter.path, f"adapts {module!r}; embedding tables and output heads cannot be adapted here")
    near = difflib.get_close_matches(module, targets, n=1)
    hint = f"; the nearest that can is {near[0]!r}" if near else ""
    raise unsupported(adapter.path, f"adapts {module!r}, which is no projection of this model that can be{hint}")
