from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from sagellm_protocol import plugins
from sagellm_protocol.testing.mock.options import MockOptions

README = Path(__file__).parent.parent / "README.md"


def test_the_readmes_programs_run() -> None:
    programs = [
        code for code in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL) if "my_package" not in code
    ]
    assert len(programs) == 2
    for program in programs:
        subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, capture_output=True, timeout=60)


def test_the_readme_names_every_option_of_the_mock_engine_and_every_group() -> None:
    text = README.read_text()
    assert [name for name in MockOptions.model_fields if f"`{name}`" not in text] == []
    assert [group for group in plugins.GROUPS if f"`{group}`" not in text] == []
