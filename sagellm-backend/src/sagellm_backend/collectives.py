"""Groups of ranks over ``torch.distributed``'s gloo transport. A group of one touches no network.

A group is an object of its own: no process-wide default group is made, so that several may exist side by side.
Knows nothing of what is sharded or why.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch

from sagellm_protocol.errors import ErrorCode, SageLLMError

GLOO = "gloo"
_MEET_WITHIN = timedelta(minutes=5)


class TorchGroup:
    """Ranks that communicate; ``process_group`` is ``None`` for a group of one."""

    def __init__(self, rank: int, size: int, process_group: Any = None) -> None:
        self.rank = rank
        self.size = size
        self._process_group = process_group

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """Sum over ranks; may overwrite ``x``."""
        if self._process_group is None:
            return x
        x = x.contiguous()
        self._process_group.allreduce([x]).wait()
        return x

    def all_gather(self, x: torch.Tensor, axis: int) -> torch.Tensor:
        """Ranks' tensors joined along ``axis`` in order of rank."""
        if self._process_group is None:
            return x
        x = x.contiguous()
        pieces = [torch.empty_like(x) for _ in range(self.size)]
        self._process_group.allgather([pieces], [x]).wait()
        return torch.cat(pieces, dim=axis)


def available_transports() -> tuple[str, ...]:
    """Names of the transports that this build of torch has."""
    distributed = torch.distributed
    return (GLOO,) if distributed.is_available() and distributed.is_gloo_available() else ()


def make_group(rank: int, size: int, rendezvous: str) -> TorchGroup:
    """Join ``size`` ranks at a ``tcp://host:port`` or ``file:///path`` URL.

    Raises:
        SageLLMError: ``INVALID_REQUEST`` for a rank outside the group; ``UNSUPPORTED`` where this torch has no gloo;
            ``UNAVAILABLE`` when the ranks do not meet.
    """
    if not 0 <= rank < size:
        raise SageLLMError(
            ErrorCode.INVALID_REQUEST, f"rank {rank} is not in a group of {size}; ranks go from 0 to {size - 1}"
        )
    if size == 1:
        return TorchGroup(0, 1)
    if not available_transports():
        raise SageLLMError(ErrorCode.UNSUPPORTED, f"a group of {size} ranks needs a torch that is built with gloo")
    from torch.distributed.rendezvous import rendezvous as meet_at

    try:
        store, _, _ = next(meet_at(rendezvous, rank, size, timeout=_MEET_WITHIN))
        group = torch.distributed.ProcessGroupGloo(store, rank, size, _MEET_WITHIN)
    except (RuntimeError, ValueError) as error:
        raise SageLLMError(
            ErrorCode.UNAVAILABLE, f"rank {rank} of {size} could not join the others at {rendezvous}: {error}"
        ) from error
    return TorchGroup(rank, size, group)
