"""Calls of GLM 4.5 and later: ``<tool_call>name`` and pairs of ``<arg_key>`` and ``<arg_value>``, ``</tool_call>``.

Source: the chat template of GLM-4.5.
"""

from __future__ import annotations

from .xml_calls import XMLCalls


class GLM(XMLCalls):
    """A name, and pairs of tags."""

    markers = ("<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")
    call = ("<tool_call>", "", "</tool_call>")
    argument = ("<arg_key>", "</arg_key>\n<arg_value>", "</arg_value>")
