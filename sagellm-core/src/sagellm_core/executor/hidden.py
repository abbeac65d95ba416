"""A step's hidden states: of all its tokens, or of those alone that something is made of.

Knows nothing of slots, nor of what is made of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagellm_protocol.backend import Backend

Tokens = NDArray[np.int64]
"""Places among a step's tokens, in ascending order."""


@dataclass(frozen=True)
class Hidden:
    """What a model made of a step.

    Attributes:
        ops: The backend.
        states: ``[R, E]``.
        read: The token of each row; ``None`` where each has its row.
    """

    ops: Backend[Any]
    states: Any
    read: Tokens | None = None

    @property
    def whole(self) -> Any:
        """The states of all tokens, ``[T, E]``."""
        assert self.read is None, "not all were read"
        return self.states

    def of(self, tokens: Tokens) -> Any:
        """The states of some of the tokens that were read, a row for each."""
        rows = tokens if self.read is None else np.searchsorted(self.read, tokens)
        return self.states if len(rows) == self.states.shape[0] else self.ops.take_rows(self.states, rows.tolist())
