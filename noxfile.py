"""Set up, run and check the six packages as one tree; knows nothing of how any of them works inside.

Nearly every session uses one environment, ``.nox/pyXYZ``, named after the Python that runs nox. What a session needs
is installed there in layers, each skipped while nothing that it was made from has changed. ``alone`` and ``lowest`` are
the exception: what they prove needs an environment that holds nothing undeclared.
"""

from __future__ import annotations

import os
import shutil
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import nox
from nox.command import CommandFailed

# nox loads this file by path, which does not make its folder importable.
sys.path.insert(0, str(Path(__file__).parent))

from tooling.environment import CONSTRAINTS, ROOT, STATE, Environment, fingerprint, same, write
from tooling.packages import NAMES, Package, packages, split

nox.needs_version = ">=2024.4.15"
nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "types", "contracts", "tests"]

TOOLS = {
    "lint": ["ruff"],
    "types": ["mypy", "types-psutil", "types-tqdm"],
    "contracts": ["import-linter"],
    "builder": ["build", "editables", "hatchling"],
    "publisher": ["twine"],
    "pinner": ["uv"],
}


def tree(session: nox.Session, *layers: str) -> Environment:
    """The shared environment with some layers: ``sources``, ``runtime``, ``test``, or one of ``TOOLS``."""
    environment, ours = Environment(session, ""), packages()
    for layer in layers:
        if layer == "sources":
            environment.install("builder", *TOOLS["builder"])
            editable = [argument for p in ours.values() for argument in ("-e", str(p.folder))]
            tables = [p.project for p in ours.values()]
            environment.install("sources", "--no-deps", "--no-build-isolation", *editable, made_from=tables)
        elif layer in TOOLS:
            environment.install(layer, *TOOLS[layer])
        else:
            extras = ["test"] if layer == "test" else []
            environment.install(layer, *sorted({line for p in ours.values() for line in split(p, *extras)[1]}))
    return environment


# --- running the product ----------------------------------------------------------------------------------------------


def become(session: nox.Session, *command: str) -> None:
    """Turn this process into ``sagellm``: the terminal, signals and exit status are then its own."""
    environment = tree(session, "sources", "runtime")
    os.chdir(session.invoked_from)
    sys.stdout.flush()
    os.execv(environment.python, [str(environment.python), "-m", "sagellm", *command])


@nox.session
def serve(session: nox.Session) -> None:
    """Serve the embedded model over an OpenAI-compatible API; `nox -s serve -- MODEL --port 9000` for another."""
    become(session, "serve", *session.posargs)


@nox.session
def chat(session: nox.Session) -> None:
    """Talk to the embedded model in the terminal; arguments after `--` go to `sagellm chat`."""
    become(session, "chat", *session.posargs)


@nox.session
def run(session: nox.Session) -> None:
    """Answer one prompt: `nox -s run -- "Why is the sky blue?"`."""
    become(session, "run", *session.posargs)


# --- tests ------------------------------------------------------------------------------------------------------------


def pytest(session: nox.Session, environment: Environment, roots: dict[str, Path], *options: str) -> None:
    """Run pytest in each root, all of them whatever fails, and close with the sum."""
    total, failing = {"passed": 0, "failed": 0, "skipped": 0}, []
    for label, root in roots.items():
        report = STATE / "reports" / f"{label}.xml"
        report.unlink(missing_ok=True)
        # Arguments such as -k may rightly select nothing in a package (pytest's status 5); without any it is a defect.
        codes = (0, 5) if session.posargs else (0,)
        try:
            environment.run("pytest", f"--junitxml={report}", *options, *session.posargs, cwd=root, success_codes=codes)
        except CommandFailed:
            failing.append(label)
        counts = tally(report)
        if label in failing:
            counts["failed"] = counts["failed"] or 1
        total = {outcome: total[outcome] + counts[outcome] for outcome in total}
    for label in failing:
        session.warn(f"failed: {label}")
    print("total: {passed} passed, {failed} failed, {skipped} skipped".format(**total), flush=True)
    if failing:
        session.error(f"tests failed in {', '.join(failing)}")


def tally(report: Path) -> dict[str, int]:
    """Count a JUnit report by outcome; one that pytest never came to write counts nothing."""
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    if report.exists():
        for suite in ET.parse(report).getroot().iter("testsuite"):
            failed, skipped = int(suite.get("failures")) + int(suite.get("errors")), int(suite.get("skipped"))
            counts["failed"] += failed
            counts["skipped"] += skipped
            counts["passed"] += int(suite.get("tests")) - failed - skipped
    return counts


each = nox.parametrize("package", [nox.param(name, id=name) for name in NAMES])


@nox.session
def tests(session: nox.Session) -> None:
    """Run every package's tests, each from its own root, then the tree's; arguments after `--` go to pytest."""
    environment = tree(session, "sources", "runtime", "test")
    pytest(session, environment, {**{p.name: p.folder for p in packages().values()}, "tree": ROOT})


@nox.session
@each
def tests_of(session: nox.Session, package: str) -> None:
    """Run one package's tests: `nox -s "tests_of(core)" -- -k sampling`."""
    pytest(session, tree(session, "sources", "runtime", "test"), {package: ROOT / f"sagellm-{package}"})


@nox.session
@each
def alone(session: nox.Session, package: str) -> None:
    """Test one package as its users get it: built, installed with what it declares and no more, away from the tree."""
    subject = next(p for p in packages().values() if p.name == package)
    isolated(session, "alone", subject, CONSTRAINTS)


@nox.session
@each
def lowest(session: nox.Session, package: str) -> None:
    """Like alone, with each requirement of the package at its lower bound."""
    subject = next(p for p in packages().values() if p.name == package)
    lines = []
    for requirement in subject.requirements():
        lower = [s.version for s in requirement.specifier if s.operator in (">=", "~=")]
        if requirement.name == "torch":
            # Old releases of torch come from the index with gigabytes of CUDA libraries: only the pinned one is tried.
            lines += [line for line in CONSTRAINTS.read_text().splitlines() if line.startswith("torch==")]
        elif requirement.name not in packages():
            lines.append(f"{requirement.name}=={lower[0]}")
    bounds = STATE / f"lowest-{package}.txt"
    STATE.mkdir(exist_ok=True)
    bounds.write_text("\n".join(lines))
    isolated(session, "lowest", subject, bounds)


def isolated(session: nox.Session, kind: str, subject: Package, constraints: Path) -> None:
    """Build a package and the siblings it requires, install them where nothing else is, and test from the sdist."""
    siblings, third_party = split(subject, "test")
    work = STATE / kind / subject.name
    shutil.rmtree(work, ignore_errors=True)
    builder = tree(session, "builder")
    for package in siblings:
        builder.run("build", "--no-isolation", "--outdir", str(work / "wheelhouse"), str(package.folder))
    wheels = sorted(str(path) for path in (work / "wheelhouse").glob("*.whl"))
    prefix = subject.distribution.replace("-", "_")
    [wheel] = [path for path in wheels if Path(path).name.startswith(f"{prefix}-")]
    [sdist] = (work / "wheelhouse").glob(f"{prefix}-*.tar.gz")

    environment = Environment(session, f"{kind}-{subject.name}-")
    declared = fingerprint(third_party, constraints.read_text())
    if not same(environment.folder / "declared", declared):
        # What an earlier declaration brought must not help this one along.
        shutil.rmtree(environment.folder, ignore_errors=True)
    others = [path for path in wheels if path != wheel]
    environment.install("dependencies", f"{wheel}[test]", *others, made_from=declared, constraints=constraints)
    write(environment.folder / "declared", declared)
    environment.run("pip", "install", "--quiet", "--force-reinstall", "--no-deps", *wheels)

    shutil.unpack_archive(sdist, work)
    # Every pytest loads anyio's plugin where anyio is; no test here uses it, and an old one warns under a new pytest.
    options = ["-p", "no:anyio"] if kind == "lowest" else []
    pytest(session, environment, {subject.name: work / sdist.name.removesuffix(".tar.gz")}, *options)


# --- checks -----------------------------------------------------------------------------------------------------------


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and format with ruff, each file by the settings of the package it is in."""
    environment = tree(session, "lint")
    environment.run("ruff", "check", ".")
    environment.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check each package's types with mypy --strict."""
    environment, failing = tree(session, "sources", "runtime", "test", "types"), []
    for package in packages().values():
        try:
            environment.run("mypy", cwd=package.folder)
        except CommandFailed:
            failing.append(package.name)
    if failing:
        session.error(f"types do not hold in {', '.join(failing)}")


@nox.session
def contracts(session: nox.Session) -> None:
    """Check who imports whom: the tree's contracts, then each package's own."""
    environment, failing = tree(session, "sources", "contracts"), []
    for name, root in {"tree": ROOT, **{p.name: p.folder for p in packages().values()}}.items():
        session.log(f"contracts of {name}")
        with session.chdir(root):
            try:
                session.run(str(environment.python.with_name("lint-imports")), "--no-logo")
            except CommandFailed:
                failing.append(name)
    if failing:
        session.error(f"contracts broken in {', '.join(failing)}")


# --- releasing --------------------------------------------------------------------------------------------------------


@nox.session
def build(session: nox.Session) -> None:
    """Build the sdist and wheel of all six into dist/ and check that the index would take them."""
    environment, out = tree(session, "builder", "publisher"), ROOT / "dist"
    shutil.rmtree(out, ignore_errors=True)
    for package in packages().values():
        environment.run("build", "--no-isolation", "--outdir", str(out), str(package.folder))
    environment.run("twine", "check", "--strict", *sorted(str(path) for path in out.iterdir()))


@nox.session
def pin(session: nox.Session) -> None:
    """Resolve constraints.txt for every Python that the packages admit; `nox -s pin -- --upgrade` moves the pins."""
    environment, wanted = tree(session, "pinner"), STATE / "wanted.txt"
    pinned_torch = [line for line in CONSTRAINTS.read_text().splitlines() if line.startswith("torch==")]
    declared = {line for p in packages().values() for line in split(p, *p.project.get("optional-dependencies", {}))[1]}
    tools = {tool for group in TOOLS.values() for tool in group} | {"nox"}
    wanted.write_text("\n".join(sorted(declared | tools) + pinned_torch))
    options = [
        "--universal",
        "--python-version=3.10",
        "--no-annotate",
        "--custom-compile-command=nox -s pin",
        "--quiet",
    ]
    environment.run("uv", "pip", "compile", *options, *session.posargs, "-o", str(CONSTRAINTS), str(wanted))
