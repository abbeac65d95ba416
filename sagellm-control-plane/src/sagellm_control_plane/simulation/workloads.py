"""Workloads made up by published figures, for where no trace is at hand.

Lengths are log-normal, fitted to the public traces of Azure (2023) and Mooncake (FAST 2025). Arrivals are those of a
population: a quarter of the clients carry nine tenths of the load, each with gamma intervals of its own burstiness.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from sagellm_protocol import ErrorCode, SageLLMError

from .requests import SimRequest

BLOCK = 512
LONGEST = 131_072
"""Tokens at which a drawn length is cut, as the traces are."""


@dataclass(frozen=True)
class Workload:
    """What is drawn. Lengths are tokens; ``mu`` and ``sigma`` those of a log-normal distribution."""

    prompt_mu: float
    prompt_sigma: float
    output_mu: float
    output_sigma: float
    rate_rps: float = 5.0
    requests: int = 10_000
    clients: int = 40
    burstiness: float = 1.17
    """Coefficient of variation of a client's intervals; 1 is Poisson."""
    turns: float = 1.0
    """Mean turns of a conversation, each of which has what went before as its prefix; 1 shares nothing."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("rate_rps", 1e-9), ("requests", 0), ("clients", 1), ("burstiness", 1e-3), ("turns", 1)):
            value = getattr(self, name)
            if not value >= least:
                raise SageLLMError(ErrorCode.INVALID_REQUEST, f"{name} must be {least} or more (got {value!r})", name)


WORKLOADS = {
    "azure_conv": Workload(6.63, 0.985, 5.02, 0.859, rate_rps=5.53, burstiness=1.09),
    "azure_code": Workload(7.00, 1.36, 2.79, 0.847, rate_rps=2.5, burstiness=4.32),
    "mooncake_conv": Workload(8.74, 1.20, 5.02, 0.859, rate_rps=3.4, turns=3.0),
}
"""Mooncake's outputs are drawn as Azure's conversations: only its prompts were fitted."""


def workload_named(name: str, **changes: float | int | None) -> Workload:
    """A workload by name, with some of its figures replaced; ``None`` leaves one as it is.

    Raises:
        SageLLMError: ``INVALID_REQUEST`` for an unknown name, listing those there are, or a figure out of range.
    """
    found = WORKLOADS.get(name)
    if found is None:
        raise SageLLMError(
            ErrorCode.INVALID_REQUEST, f"unknown workload {name!r}; there are {', '.join(sorted(WORKLOADS))}", "trace"
        )
    return replace(found, **{key: value for key, value in changes.items() if value is not None})  # type: ignore[arg-type]  # as named by callers


def generate(workload: Workload) -> Iterator[SimRequest]:
    """Requests in order of arrival, drawn one by one: memory grows with clients, not with requests."""
    rng = random.Random(workload.seed)
    shares = _shares(workload.clients)
    clients: list[tuple[float, int]] = []
    for client, share in enumerate(shares):
        clients.append((_interval(rng, workload, share), client))
    heapq.heapify(clients)
    talks: dict[int, list[int]] = {}
    blocks = 0
    for number in range(workload.requests):
        now, client = clients[0]
        heapq.heapreplace(clients, (now + _interval(rng, workload, shares[client]), client))
        prompt, output = (
            _tokens(rng, workload.prompt_mu, workload.prompt_sigma),
            _tokens(rng, workload.output_mu, workload.output_sigma),
        )
        held: list[int] = []
        if workload.turns > 1:
            held = talks.get(client, [])
            if rng.random() < 1 / workload.turns or len(held) * BLOCK > LONGEST // 2:
                held = []
            # The lengths that were fitted are of whole prompts: what was said before is part of them.
            held = held[: prompt // BLOCK]
            fresh = prompt // BLOCK - len(held)
            held = [*held, *range(blocks, blocks + fresh)]
            blocks += fresh
            talks[client] = held
        yield SimRequest(number, now, prompt, output, tuple(held), BLOCK, user=f"c{client}")


def _shares(clients: int) -> list[float]:
    """Share of the load of each client: a quarter of them has nine tenths."""
    heavy = max(1, round(clients / 4))
    light = clients - heavy
    if not light:
        return [1 / heavy] * heavy
    return [0.9 / heavy] * heavy + [0.1 / light] * light


def _interval(rng: random.Random, workload: Workload, share: float) -> float:
    shape = workload.burstiness**-2
    return rng.gammavariate(shape, 1 / (workload.rate_rps * share * shape))


def _tokens(rng: random.Random, mu: float, sigma: float) -> int:
    return max(1, min(LONGEST, round(rng.lognormvariate(mu, sigma))))
