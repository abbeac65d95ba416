"""What callers of the replaced control plane know of it: modules, classes, parameters, defaults, fields.

``legacy_api.json`` holds the facts. Run as a script over the text that lists them, this file writes it anew::

    python legacy_facts.py ../../../shared/legacy/API.md > legacy_api.json
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

DATA = Path(__file__).with_name("legacy_api.json")
SOURCE = Path(__file__).parents[2] / ".." / "shared" / "legacy" / "API.md"
OLD, NEW = "sage.llm.control_plane", "sagellm_control_plane"
_QUOTED = re.compile(r"`([^`]+)`")
_CLASS = re.compile(r"- \*\*(\w+)\*\*(?:\((.*)\))?$")


def read() -> dict[str, Any]:
    """The facts as they are kept."""
    facts: dict[str, Any] = json.loads(DATA.read_text())
    return facts


def parse(text: str) -> dict[str, Any]:
    """The facts as the text states them."""
    exports = re.search(rf"Exported at `{re.escape(OLD)}`: (.*?)\.\n", text, re.DOTALL)
    assert exports is not None
    modules: dict[str, Any] = {}
    for section in text.split("\n## ")[1:]:
        name, _, body = section.partition("\n")
        name = name.strip("` ")
        if name.startswith(OLD + "."):
            modules[NEW + name[len(OLD) :]] = _module(body)
    return {"exports": sorted(re.split(r",\s+", exports[1])), "modules": modules}


def _module(body: str) -> dict[str, Any]:
    classes: dict[str, Any] = {}
    functions: list[str] = []
    current: dict[str, Any] = {}
    for line in body.splitlines():
        found = _CLASS.match(line)
        if found:
            bases = [base.strip() for base in (found[2] or "").split(",") if base.strip()]
            current = classes[found[1]] = {"bases": bases, "fields": [], "methods": []}
        elif line.startswith("  - fields: "):
            current["fields"] = _QUOTED.findall(line)
        elif line.startswith("  - "):
            current["methods"].append(_function(line[4:]))
        elif line.startswith(("- `", "- async `")):
            functions.append(_function(line[2:]))
    return {"classes": classes, "functions": functions}


def _function(line: str) -> str:
    """``[@kind ][async ]def name(parameters) -> answer``."""
    quoted = _QUOTED.search(line)
    assert quoted is not None
    mark = re.search(r"\((property|static|classmethod)\)$", line)
    kind = f"@{mark[1]} " if mark else ""
    return f"{kind}{'async ' if line.startswith('async ') else ''}def {quoted[1]}"


if __name__ == "__main__":
    sys.stdout.write(json.dumps(parse(Path(sys.argv[1]).read_text()), indent=1) + "\n")
