"""Calls of Qwen3-Coder: ``<tool_call><function=name><parameter=key>value</parameter></function></tool_call>``.

Each tag and each value stands on a line of its own. Source: the chat template of Qwen3-Coder.
"""

from __future__ import annotations

from .xml_calls import XMLCalls


class Qwen3Coder(XMLCalls):
    """Tags with their names after an equals sign."""

    markers = ("<tool_call>", "</tool_call>")
    block = ("<tool_call>", "</tool_call>")
    one_a_block = True
    call = ("<function=", ">", "</function>")
    argument = ("<parameter=", ">", "</parameter>")
    lines = True
