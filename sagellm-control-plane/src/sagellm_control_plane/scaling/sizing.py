"""How many engines a load needs, from what its tokens cost. Pure arithmetic; knows nothing of queues or of the past."""

from __future__ import annotations

from dataclasses import dataclass

from sagellm_control_plane.board import Role

from .costs import Costs

LEAST_SHARE = 0.1
"""Of an engine's time that is reckoned with where targets leave none: more engines cannot keep them."""


@dataclass(frozen=True)
class Demand:
    """A load, by the second."""

    requests_s: float = 0.0
    prompt_tokens_s: float = 0.0
    output_tokens_s: float = 0.0


@dataclass(frozen=True)
class Targets:
    """What is to be kept. Times are seconds."""

    ttft_s: float | None = None
    itl_s: float | None = None
    utilisation: float = 0.8


@dataclass(frozen=True)
class Size:
    """Engines that a load needs, before rounding, and what decides it."""

    engines: float
    limit: str


def engines_needed(
    demand: Demand, costs: Costs, targets: Targets, *, max_num_seqs: int | None = None, role: Role = Role.BOTH
) -> Size:
    """The least number of equal engines that serve a load within the targets.

    An engine spends ``prompt_tokens_s x prompt_token_s + output_tokens_s x output_token_s`` of each second on tokens.
    Of the rest, ``step_s / itl_s`` goes to steps, of which there must be ``1 / itl_s`` a second while anything decodes.
    It may be busy for a share ``utilisation`` of its time, and for less where prompts are long beside ``ttft_s``: in a
    queue with random arrivals a prompt of ``s`` seconds is done after ``s / (1 - busy)`` (M/M/1, Kleinrock 1975).

    Args:
        demand: The load of all engines together.
        costs: Of one engine.
        targets: What is to be kept.
        max_num_seqs: Sequences that one runs at once.
        role: Which part of the work they take.
    """
    prompt_s = demand.prompt_tokens_s * costs.prompt_token_s if role is not Role.DECODE else 0.0
    output_s = demand.output_tokens_s * costs.output_token_s if role is not Role.PREFILL else 0.0
    decodes = role is not Role.PREFILL and demand.output_tokens_s > 0
    share, limit = targets.utilisation, "utilisation"
    if targets.ttft_s is not None and demand.requests_s > 0 and role is not Role.DECODE:
        waiting = 1 - prompt_s / demand.requests_s / targets.ttft_s
        if waiting < share:
            share, limit = waiting, "time to the first token"
    if decodes and targets.itl_s is not None and costs.step_s > 0:
        share, limit = share - costs.step_s / targets.itl_s, "time between tokens"
    if share < LEAST_SHARE:
        share, limit = LEAST_SHARE, f"{limit}, which no number of engines keeps"
    engines = (prompt_s + output_s) / share
    if decodes and targets.itl_s is not None and max_num_seqs is not None:
        by_sequences = demand.output_tokens_s * targets.itl_s / max_num_seqs
        if by_sequences > engines:
            return Size(by_sequences, "sequences at once")
    return Size(engines, limit)
