"""The ``sagellm`` command as a person or a script meets it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from conftest import Server
from sagellm.cli.options import ENGINE_OPTIONS, SAMPLING_OPTIONS, size

Command = Callable[..., "subprocess.CompletedProcess[str]"]
MOCK = ("--engine", "mock")


def test_without_arguments_it_shows_its_commands(sagellm: Command) -> None:
    done = sagellm()
    for name in ("run", "chat", "serve", "engine", "pull", "models", "simulate", "doctor", "version"):
        assert name in done.stdout


@pytest.mark.parametrize("name", ["run", "chat", "serve", "engine", "pull", "simulate"])
def test_every_help_has_an_example(sagellm: Command, name: str) -> None:
    done = sagellm(name, "--help")
    assert done.returncode == 0
    assert f"sagellm {name}" in done.stdout.partition("Usage:")[2].partition("\n")[2]


def test_version_lists_all_parts(sagellm: Command) -> None:
    found = json.loads(sagellm("version", "--json").stdout)
    assert set(found) == {
        "isagellm",
        "isagellm-protocol",
        "isagellm-backend",
        "isagellm-core",
        "isagellm-control-plane",
        "isagellm-gateway",
    }
    assert "isagellm-core" in sagellm("version").stdout


def test_doctor_reports_devices_and_no_problem_here(sagellm: Command) -> None:
    done = sagellm("doctor", "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 0, report
    assert report["ok"] is True
    subjects = {finding["subject"] for finding in report["findings"]}
    assert {"python", "packages", "torch", "backend cpu", "models"} <= subjects
    assert "backend cpu" in sagellm("doctor").stdout


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """Environment variables under which neither an engine of ours nor a backend nor torch can be imported."""
    absent = ("sagellm_core", "sagellm_backend", "torch")
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({absent}))\n")
    return {"PYTHONPATH": str(tmp_path)}


@pytest.mark.parametrize(
    "arguments",
    [("run", "x"), ("chat",), ("serve", "--port", "0"), ("engine", "--port", "0"), ("models",), ("pull", "any")],
)
def test_without_an_engine_it_says_what_to_install(
    sagellm: Command, bare: dict[str, str], arguments: tuple[str, ...]
) -> None:
    done = sagellm(*arguments, **bare)
    assert done.returncode == 1
    assert done.stderr == "error: this needs sagellm_core, which is not installed: pip install isagellm\n"


def test_without_an_engine_the_mock_still_answers(
    sagellm: Command, serve: Callable[..., Server], bare: dict[str, str]
) -> None:
    server = serve("serve", "--engine", "mock", **bare)
    assert "mock" in sagellm("run", "Hello", "--url", server.url, "--max-tokens", "8", **bare).stdout


def test_without_an_engine_doctor_says_so_and_every_check_ends(sagellm: Command, bare: dict[str, str]) -> None:
    done = sagellm("doctor", "--json", **bare)
    findings = {finding["subject"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert done.returncode == 1
    assert findings["engine"]["fix"] == "pip install isagellm"
    assert {"python", "torch", "port"} <= set(findings)
    assert "the check itself failed" not in done.stdout


def test_run_answers_on_standard_output_alone(sagellm: Command) -> None:
    done = sagellm("run", "Hello", *MOCK, "--max-tokens", "8")
    assert done.returncode == 0
    assert "mock" in done.stdout
    assert done.stdout.endswith("\n")
    assert done.stderr == ""


def test_run_reads_standard_input(sagellm: Command) -> None:
    assert "mock" in sagellm("run", *MOCK, "--max-tokens", "8", stdin="Hello").stdout
    assert "mock" in sagellm("run", "-", *MOCK, "--max-tokens", "8", stdin="Hello").stdout


def test_run_json_is_one_object(sagellm: Command) -> None:
    answer = json.loads(sagellm("run", "Hello", *MOCK, "--max-tokens", "4", "--json").stdout)
    assert answer["model"] == "mock"
    assert answer["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 4


def test_run_asks_a_gateway(sagellm: Command, mock_stack: Server) -> None:
    done = sagellm("run", "Hello", "--url", mock_stack.url, "--max-tokens", "4", "--json")
    answer = json.loads(done.stdout)
    assert answer["usage"]["completion_tokens"] == 4


def test_verbose_says_what_was_measured(sagellm: Command) -> None:
    done = sagellm("run", "Hello", *MOCK, "--max-tokens", "4", "--verbose")
    assert "4 output tokens" in done.stderr


def test_chat_keeps_its_history_and_understands_commands(sagellm: Command, tmp_path: Path) -> None:
    saved = tmp_path / "talk.json"
    lines = [
        "Hello",
        "/set max_tokens 4",
        "And now?",
        "/show",
        "/set top_p 9",
        "/what",
        f"/save {saved}",
        "/exit",
        "lost",
    ]
    done = sagellm("chat", *MOCK, "--max-tokens", "8", "--system", "Be brief.", stdin="\n".join(lines) + "\n")
    assert done.returncode == 0
    turns = json.loads(saved.read_text(encoding="utf-8"))
    assert [turn["role"] for turn in turns] == ["system", "user", "assistant", "user", "assistant"]
    assert turns[0]["content"] == "Be brief."
    assert "max_tokens = 4" in done.stderr
    assert "top_p" in done.stderr
    assert "no command /what" in done.stderr


def test_chat_goes_on_after_a_refused_turn(sagellm: Command) -> None:
    lines = "x " * 5000 + "\nHello\n"
    done = sagellm("chat", *MOCK, "--max-tokens", "8", "--max-model-len", "256", stdin=lines)
    assert done.returncode == 0
    assert "error:" in done.stderr
    assert "mock" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "x", *MOCK, "--top-p", "7"), "top_p"),
        (("run", "x", *MOCK, "--option", "nonsense"), "NAME=VALUE"),
        (("run", "x", *MOCK, "--option", "no_such_option=1"), "no_such_option"),
        (("run", "x", "--engine", "no-such-engine"), "no-such-engine"),
        (("run", "x", "--model", "no/such/place/at.all"), "no/such/place/at.all"),
        (("run", "x", "--model", "smollm2-135"), "smollm2-135m"),
        (("run", "x", "--device", "no-such-device"), "no-such-device"),
        (("run", "x", "--dtype", "float3"), "float3"),
        (("run", "x", "--num-speculative-tokens", "3"), "--speculative ngram"),
        (("run", "x", "--speculative", "draft"), "needs model"),
        (("run", "x", "--speculative-model", "no/such/place/at.all"), "no/such/place/at.all"),
        (("run", "", *MOCK), "empty"),
        (("run", "x", *MOCK, "--raw", "--system", "y"), "--raw"),
        (("pull", "no-such-model"), "all-minilm-l6-v2"),
        (("serve", *MOCK, "--host", "0.0.0.0", "--port", "0"), "key"),
        (("serve", *MOCK, "--policy", "no-such-policy"), "fifo"),
        (("serve", *MOCK, "--routing", "no-such-routing"), "least_load"),
        (("serve", "smollm2-135", "--port", "0"), "smollm2-135m"),
        (("serve", "--device", "no-such-device", "--port", "0"), "no-such-device"),
        (("serve", "--attach", "http://127.0.0.1:9", "--port", "0"), "127.0.0.1:9"),
        (("engine", "./no-such-folder", "--port", "0"), "no-such-folder"),
        (("run", "x", "--url", "http://127.0.0.1:9/v1"), "sagellm serve"),
    ],
)
def test_a_mistake_is_one_message_with_the_fix_and_no_traceback(
    sagellm: Command, arguments: tuple[str, ...], words: str
) -> None:
    done = sagellm(*arguments)
    assert done.returncode == 1
    assert "error:" in done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_debug_shows_the_traceback(sagellm: Command) -> None:
    done = sagellm("--debug", "run", "x", *MOCK, "--top-p", "7")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


@pytest.mark.parametrize(
    "arguments", [("run", "x", "--no-such-flag"), ("nothing",), ("run", "x", "--kv-cache-memory", "much")]
)
def test_a_usage_error_exits_with_2(sagellm: Command, arguments: tuple[str, ...]) -> None:
    done = sagellm(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.fixture
def interruptible() -> Iterator[None]:
    """What is started takes SIGINT, though these tests may run in the background, where shells have it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(
    ("arguments", "status"), [(("serve", "--port", "0"), 0), (("run", "x"), 130), (("engine", "--port", "0"), 130)]
)
def test_a_first_fetch_is_told_and_can_be_left(tmp_path: Path, arguments: tuple[str, ...], status: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        index = f"http://127.0.0.1:{silent.getsockname()[1]}/simple"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")} | {
            "SAGELLM_HOME": str(tmp_path),
            "HF_HUB_OFFLINE": "1",
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_INDEX_URL": index,
        }
        command = [sys.executable, "-m", "sagellm", *arguments]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
            assert process.stderr is not None
            assert "downloading the model from the index" in process.stderr.readline()
            # Beside the core's process, which is started ahead.
            [pip] = [child for child in psutil.Process(process.pid).children() if "pip" in child.cmdline()]
            silent.settimeout(60)
            asking, _ = silent.accept()  # pip waits for an answer now
            with asking:
                process.send_signal(signal.SIGINT)
                _, rest = process.communicate(timeout=60)
    assert process.returncode == status
    assert rest == ""
    assert not pip.is_running()


def test_pull_names_the_file_it_keeps(sagellm: Command) -> None:
    pulled = json.loads(sagellm("pull", "smollm2-135m", "--json").stdout)
    assert Path(pulled["path"]).is_file()
    assert re.fullmatch("[0-9a-f]{64}", pulled["sha256"])
    again = sagellm("pull", "smollm2-135m")
    assert again.stdout.strip() == pulled["path"]
    listed = json.loads(sagellm("models", "--json").stdout)["models"]
    assert {entry["name"] for entry in listed} == {"smollm2-135m", "all-minilm-l6-v2"}
    assert len(sagellm("models", COLUMNS="40").stdout.splitlines()) == 1 + len(listed)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1024", 1024),
        ("1K", 1024),
        ("1KiB", 1024),
        ("1KB", 1000),
        ("1.5GiB", 3 << 29),
        ("2g", 2 << 30),
        ("10 MB", 10**7),
    ],
)
def test_sizes_read_as_people_write_them(text: str, value: int) -> None:
    assert size(text) == value


@pytest.mark.parametrize("command", ["run", "chat", "serve"])
def test_help_names_what_weights_can_be_quantised_to(sagellm: Command, command: str) -> None:
    assert "--quantization" in (shown := sagellm(command, "--help").stdout)
    assert "[int8|int4]" in shown


@pytest.mark.parametrize("command", ["run", "chat", "serve", "engine"])
def test_every_shared_option_is_shown_in_help(sagellm: Command, command: str) -> None:
    shown = sagellm(command, "--help").stdout
    tables = (ENGINE_OPTIONS, SAMPLING_OPTIONS) if command in {"run", "chat"} else (ENGINE_OPTIONS,)
    for name in {name for table in tables for name in table}:
        assert f"--{name.replace('_', '-')}" in shown


def test_an_address_that_was_killed_comes_back_with_the_same_engine_process(
    sagellm: Command, serve: Callable[..., Server], tmp_path: Path
) -> None:
    arguments = ("serve", *MOCK, "--launcher", "subprocess", "--registry", str(tmp_path / "registry"))
    first = serve(*arguments)
    lock = tmp_path / "registry.engines" / "serve" / "lock"
    pid = lock.read_text()
    first.process.kill()
    first.process.wait()
    again = serve(*arguments)
    assert lock.read_text() == pid
    assert "mock" in sagellm("run", "Hello", "--url", again.url, "--max-tokens", "8").stdout


def test_an_address_of_openais_api_is_served_like_an_engine(
    sagellm: Command, serve: Callable[..., Server], mock_stack: Server
) -> None:
    before = serve("serve", "--attach", f"openai+{mock_stack.root}")
    assert before.model == mock_stack.model
    arguments = ("run", "Hello", "--max-tokens", "8", "--temperature", "0", "--url")
    answers = {sagellm(*arguments, server.url).stdout for server in (before, mock_stack)}
    assert len(answers) == 1
    assert "mock" in answers.pop()
