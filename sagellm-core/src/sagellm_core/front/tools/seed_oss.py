"""Calls of Seed-OSS: those of Qwen3-Coder between tags of its own, with values right within theirs.

Source: the chat template of ByteDance's Seed-OSS.
"""

from __future__ import annotations

from .xml_calls import XMLCalls


class SeedOSS(XMLCalls):
    """Tags with their names after an equals sign."""

    markers = ("<seed:tool_call>", "</seed:tool_call>")
    block = ("<seed:tool_call>", "</seed:tool_call>")
    one_a_block = True
    call = ("<function=", ">", "</function>")
    argument = ("<parameter=", ">", "</parameter>")
