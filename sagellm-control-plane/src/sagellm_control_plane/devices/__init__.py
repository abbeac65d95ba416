"""Devices: what a host has and how it is joined, what is promised to whom, and how a model is spread over them."""

from __future__ import annotations

from . import nvidia as nvidia
from .inventory import (
    Device as Device,
    Found as Found,
    Link as Link,
    LinkKind as LinkKind,
    of_backends as of_backends,
)
from .ledger import DeviceLedger as DeviceLedger, Grant as Grant
from .numa import NumaNode as NumaNode, node_of as node_of, nodes as nodes
from .planner import (
    Memory as Memory,
    Plan as Plan,
    Wish as Wish,
    kv_bytes as kv_bytes,
    memory_of as memory_of,
    plan as plan,
)
from .shape import ModelShape as ModelShape
