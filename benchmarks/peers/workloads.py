"""What is asked of every engine: (a) to (d), their prompts and what counts.

Prompts are random tokens, different for every round, so that no engine finds a prefix it has seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from benchmarks.engine import Prompts, prompts_of


class Counts(Enum):
    """What a rate is the rate of."""

    DECODE = "tokens after the first, over the time after the first"
    PREFILL = "prompt tokens, over the time to the first token of output"
    OUTPUT = "output tokens, over the whole time, prefill included"


@dataclass(frozen=True)
class Workload:
    """Some requests at once, all alike, generated greedily and past any end-of-text.

    Attributes:
        key: The letter it is known by.
        title: What it is, for people.
        streams: Requests at once.
        prompt: Tokens of each prompt.
        output: Tokens of each output.
        counts: What the rate counts.
    """

    key: str
    title: str
    streams: int
    prompt: int
    output: int
    counts: Counts

    def prompts(self, vocab_size: int, seed: int) -> Prompts:
        """The prompts of one round."""
        # Seeds of workloads must not meet: a prompt that begins like another one would be found in a prefix cache.
        return prompts_of([self.prompt] * self.streams, 1000 * ord(self.key) + seed, vocab_size)


WORKLOADS = {
    one.key: one
    for one in (
        Workload("a", "decode of one stream, prompt 32, output 128", 1, 32, 128, Counts.DECODE),
        Workload("b", "prefill of 1,024", 1, 1024, 1, Counts.PREFILL),
        Workload("c", "16 requests at once, prompt 128, output 128", 16, 128, 128, Counts.OUTPUT),
        Workload("d", "64 requests at once, prompt 128, output 128", 64, 128, 128, Counts.OUTPUT),
    )
}
MOST_STREAMS = max(one.streams for one in WORKLOADS.values())
