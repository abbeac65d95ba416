"""Our engine beside its peers on a CPU: the same model, the same prompts, the same minutes.

A peer is one module with a class (:mod:`.base`) that sets itself up in an environment of its own and starts workers; a
worker is one loaded engine that answers prompts of token ids (:mod:`.worker`). :mod:`.measure` asks them in turn,
:mod:`.report` prints. A new peer is one module and one line of the table here.
"""

from __future__ import annotations

from .base import Peer
from .llama_cpp import LlamaCpp
from .openvino import OpenVINO
from .ours import Ours
from .transformers import Transformers
from .vllm import VLLM

PEERS: dict[str, type[Peer]] = {
    "ours": Ours,
    "llama.cpp": LlamaCpp,
    "openvino": OpenVINO,
    "vllm": VLLM,
    "transformers": Transformers,
}
"""By the name ``--only`` takes."""
