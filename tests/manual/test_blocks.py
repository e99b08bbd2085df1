"""Every block of code of README and manual is true: it runs and prints what the page says, or at least parses.

Each page stands by itself, in a directory of its own:

- `python`, followed by `text`: a program, and what it prints.
- `python` whose first line is `# name.py`: a file, which a console of the page runs.
- any other `python`: a fragment, run in an async function with the names that the manual's contents promise.
- `console`: typed into one shell, one command after the other; `…` stands for what differs from run to run.
- `toml`, `ini`, `yaml`, `dockerfile`, `nginx`: a file; parsed, and by what reads it, where that is at hand.
- `bash`: only its syntax is looked at; the README's two commands are what the CI runs.
- `mermaid`: a diagram; what can be wrong with it is looked for.
"""

from __future__ import annotations

import ast
import configparser
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
from inspect import iscoroutine
from itertools import pairwise
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any, Final, Self

import kubernetes_validate
import pytest
import trio
import yaml
from compose_pydantic import ComposeSpecification

import trionode.manual
from prepared import Interpreter, prepared
from trionode.cli.config import load_config
from trionode.discovery.static import _entries
from trionode.manual.markdown import Part, blocks, parts
from trionode.pki import CertificateAuthority, write_ca_pool, write_crl_set, write_key_pair
from trionode.testing import node_factory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trionode import ServiceChannel

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = {
    "README": ROOT / "README.md",
    **{f"manual/{file.stem}": file for file in sorted(Path(trionode.manual.__file__).parent.glob("*.md"))},
}
TEXTS: Final = {name: file.read_text(encoding="utf-8") for name, file in PAGES.items()}

#: Every process and every test is bounded by this. Seconds.
PATIENCE: Final = 60

#: The languages that pages use.
KINDS: Final = {"bash", "console", "dockerfile", "ini", "mermaid", "nginx", "python", "text", "toml", "yaml"}

_FILE: Final = re.compile(r"# ([\w.-]+\.\w+|Dockerfile)\b")
NAMES: Final = ("alpha@localhost", "beta@localhost")


def file_name(block: Part) -> str | None:
    """The file that a block is, by its first line."""
    found = _FILE.match(block.text)
    return None if found is None else found[1]


def programs(text: str) -> Iterator[tuple[Part, str]]:
    """Each program of a page, and what it prints."""
    found = [part for part in parts(text) if part.kind is not None or part.text.strip()]
    for program, output in pairwise(found):
        if program.kind == "python" and output.kind == "text":
            yield program, output.text


def fragments(text: str) -> list[Part]:
    """The Python blocks that are neither programs nor files."""
    whole = {program.line for program, _ in programs(text)}
    return [each for each in blocks(text, "python") if each.line not in whole and file_name(each) is None]


def having(*kinds: str) -> list[str]:
    """The pages that have blocks of some languages."""
    return [name for name, text in TEXTS.items() if any(blocks(text, *kinds))]


def make_pki(folder: Path) -> CertificateAuthority:
    """What `trionode pki` makes of the names that the pages use."""
    authority = CertificateAuthority.create()
    authority.save(folder / "pki")
    write_crl_set(authority.revocation_list(), folder / "pki" / "ca.crl")
    for name in NAMES:
        write_key_pair(authority.issue(name), folder / "pki" / f"{name}.pem", folder / "pki" / f"{name}-key.pem")
    return authority


@pytest.mark.parametrize("name", TEXTS)
def test_every_block_is_of_a_kind_that_is_run_or_parsed(name: str) -> None:
    """No block is outside of what is looked at here."""
    assert {block.kind for block in blocks(TEXTS[name])} <= KINDS
    assert TEXTS[name].count("\n```") % 2 == 0
    for block in blocks(TEXTS[name], "python"):
        assert max(map(len, block.text.splitlines())) <= 120, block.line


# Programs -----------------------------------------------------------------------------------------------------------

PROGRAMS: Final = [
    pytest.param(program.text, output, id=f"{name}:{program.line}")
    for name, text in TEXTS.items()
    for program, output in programs(text)
]


def test_there_are_programs() -> None:
    """They are found."""
    assert len(PROGRAMS) >= 7


@pytest.fixture(scope="module")
def python() -> Iterator[Interpreter]:
    """An interpreter that has imported what any name of `trionode` brings, and nothing else."""
    with prepared("trionode._public", path=ROOT) as interpreter:
        yield interpreter


@pytest.mark.parametrize(("program", "output"), PROGRAMS)
def test_a_program_prints_what_the_page_says(program: str, output: str, python: Interpreter, tmp_path: Path) -> None:
    """By itself, among the files that `trionode pki` makes; it warns of nothing."""
    make_pki(tmp_path)
    script = tmp_path / "program.py"
    script.write_text(program, encoding="utf-8")
    done = python.run(script, tmp_path)
    assert (done.stdout, done.stderr, done.returncode) == (output, "", 0)


# Fragments ----------------------------------------------------------------------------------------------------------


async def echo(channel: ServiceChannel) -> None:
    """The service that fragments may call."""
    async for message in channel:
        await channel.send(message)


@pytest.mark.parametrize("name", [name for name, text in TEXTS.items() if fragments(text)])
async def test_the_fragments_of_a_page_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, in one namespace, as somebody tries them."""
    authority = make_pki(tmp_path)
    monkeypatch.chdir(tmp_path)
    with trio.fail_after(PATIENCE):
        async with node_factory(authority).cluster(*NAMES, services={"echo": echo}) as nodes:
            async with trio.open_nursery() as nursery:
                alpha, beta = nodes
                namespace: dict[str, Any] = {
                    "alpha": alpha,
                    "beta": beta,
                    "ca": authority,
                    "certs": alpha.options.cert_manager,
                    "nursery": nursery,
                    "trio": trio,
                }
                for each in fragments(TEXTS[name]):
                    await run_fragment("\n" * (each.line - 1) + each.text, str(PAGES[name]), namespace)
                nursery.cancel_scope.cancel()


async def run_fragment(source: str, file: str, namespace: dict[str, Any]) -> None:
    """Run statements that may `await`."""
    code = compile(source, file, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    running = FunctionType(code, namespace)()
    if iscoroutine(running):
        await running
    await trio.lowlevel.checkpoint()


# Consoles -----------------------------------------------------------------------------------------------------------

#: What only looks, and may be asked again; and for how long, which only failing takes. Seconds.
LOOKING: Final = ("trionode explain", "trionode status")
NOTICED: Final = 10


class Shell:
    """A bash that is told one command after the other, as somebody types them."""

    _OVER: Final = "## the command is over:"

    def __init__(self, folder: Path) -> None:
        folder.joinpath("run").mkdir(mode=0o700)
        kept = {name: value for name, value in os.environ.items() if name.startswith(("COV", "LANG", "LC_"))}
        self._bash = subprocess.Popen(
            ["bash"],
            cwd=folder,
            env={
                **kept,
                "PATH": os.pathsep.join([str(folder / "bin"), os.environ["PATH"]]),
                "PYTHONPATH": os.pathsep.join(sys.path),
                "XDG_RUNTIME_DIR": str(folder / "run"),
                "COLUMNS": "80",
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # all that it started ends with it
        )
        (folder / "bin").mkdir()
        for name, what in (("trionode", "-W error -m trionode"), ("python", "-W error")):
            command = folder / "bin" / name
            command.write_text(f'#!/bin/sh\nexec "{sys.executable}" {what} "$@"\n', encoding="utf-8")
            command.chmod(0o700)
        self._timer = threading.Timer(PATIENCE, os.killpg, (self._bash.pid, signal.SIGKILL))
        self._timer.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        with self._bash:
            os.killpg(self._bash.pid, signal.SIGKILL)

    def _say(self, command: str) -> None:
        assert self._bash.stdin is not None
        self._bash.stdin.write(f"{command}\n")
        self._bash.stdin.flush()

    def type(self, command: str) -> str:
        """What a command says; one that goes on in the background is not waited for, but for its first line."""
        assert self._bash.stdout is not None
        if command.endswith("&"):
            self._say(command)
            return self._bash.stdout.readline()
        # A job that is told to end is waited for, as people do without noticing, and is not started again as %1.
        ended = command.removeprefix("kill ") if command.startswith("kill %") else ""
        self._say(f"{command}{f'; wait {ended}' if ended else ''}\necho '{self._OVER}'")
        said = ""
        while not said.endswith(f"{self._OVER}\n"):
            line = self._bash.stdout.readline()
            assert line, f"{command}: over {PATIENCE} seconds, and so far: {said}"
            said += line
        return said.removesuffix(f"{self._OVER}\n")


def pattern(shown: str) -> re.Pattern[str]:
    """What is shown, as a pattern: `…` stands for the rest of a word or line, a line of its own for any lines."""
    lines = [
        r"(?:.*\n)*?" if line == "…" else re.escape(line).replace("…", ".*") + r"\n" for line in shown.splitlines()
    ]
    return re.compile("".join(lines))


def typed(console: str) -> list[tuple[str, str]]:
    """The commands of a console, each with what is shown of its output."""
    return re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", console, re.MULTILINE)


@pytest.mark.parametrize("name", having("console"))
def test_the_consoles_of_a_page_say_what_it_says(name: str, tmp_path: Path) -> None:
    """One after the other, in one directory, with the page's files as they come; on free ports.

    What only looks is tried again until it says so: a person would, and a node needs a moment to notice new files.
    """
    text = TEXTS[name]
    if "$ trionode pki init" not in text:
        make_pki(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_server(("127.0.0.1", 0)) as other:
        port, second = str(server.getsockname()[1]), str(other.getsockname()[1])
    with Shell(tmp_path) as shell:
        for part in blocks(text):
            block = part.text.replace("15001", port).replace("15443", second)
            file = file_name(part)
            if file is not None:
                (tmp_path / file).write_text(block, encoding="utf-8")
            for command, expected in typed(block) if part.kind == "console" else ():
                wanted = pattern(expected)
                said = shell.type(command)
                end = time.monotonic() + NOTICED
                while command.startswith(LOOKING) and not wanted.fullmatch(said) and time.monotonic() < end:
                    said = shell.type(command)
                assert wanted.fullmatch(said), f"$ {command}\n{said}"
    for log in tmp_path.glob("*.log"):
        assert "Traceback" not in log.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", having("python"))
def test_a_python_file_is_run_by_a_console_of_its_page(name: str) -> None:
    """A block that is a file, and is not run, is one that is not tested."""
    commands = " ".join(command for block in blocks(TEXTS[name], "console") for command, _ in typed(block.text))
    for block in blocks(TEXTS[name], "python"):
        file = file_name(block)
        if file is not None and not (file.startswith("test_") and "pytest" in commands):
            assert file in commands or f" {file.removesuffix('.py')}:" in commands


# Files of other programs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", having("toml"))
def test_a_toml_file_is_one_for_serve(name: str, tmp_path: Path) -> None:
    """Each table of it and each key is known; or it is one for `StaticResolver`."""
    for block in blocks(TEXTS[name], "toml"):
        if file_name(block) == "nodes.toml":
            assert "host-b.example" in str(_entries(tomllib.loads(block.text)["nodes"]))
            continue
        (tmp_path / "node.toml").write_text(block.text, encoding="utf-8")
        assert load_config(tmp_path / "node.toml").name == "beta@localhost" or "host-b.example" in block.text


@pytest.mark.parametrize("name", having("yaml"))
def test_yaml_parses(name: str, tmp_path: Path) -> None:
    """Every document is what its program takes, by its schema; a node's configuration in one is what we take."""
    for block in blocks(TEXTS[name], "yaml"):
        documents = list(yaml.safe_load_all(block.text))
        assert documents
        for document in documents:
            assert isinstance(document, dict)
            if "groups" in document:  # Prometheus
                continue
            if "services" in document:  # Compose, which ignores keys that it does not know
                taken = ComposeSpecification(**document).model_dump(by_alias=True, exclude_none=True)
                assert document["services"].keys() == taken["services"].keys()
                for name_of, service in document["services"].items():
                    assert service.keys() <= taken["services"][name_of].keys()
                continue
            assert {"apiVersion", "kind", "metadata"} <= document.keys()
            if document["apiVersion"] in ("v1", "apps/v1"):
                kubernetes_validate.validate(document, "1.30", strict=True)
            for file, text in document.get("data", {}).items():
                (tmp_path / file).write_text(text, encoding="utf-8")
                assert tomllib.loads(text)
                load_config(tmp_path / file)


def test_the_kubernetes_objects_fit_together() -> None:
    """What the pods mount, select and are named by is there; every file of the configuration is mounted."""
    [certificate, *rest] = [
        document
        for block in blocks(TEXTS["manual/operating"], "yaml")
        for document in yaml.safe_load_all(block.text)
        if "kind" in document
    ]
    [config, service, pods] = rest
    spec = pods["spec"]["template"]["spec"]
    [container] = spec["containers"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    assert mounts.keys() == volumes.keys()
    projected = volumes["tls"]["projected"]["sources"]
    assert projected[0]["secret"]["name"] == certificate["spec"]["secretName"]
    files = {
        f"{mounts['tls']}/{item['path']}" for source in projected for kind in source.values() for item in kind["items"]
    }
    credentials = tomllib.loads(config["data"]["beta.toml"])["credentials"]
    assert {credentials["cert"], credentials["key"], *credentials["ca"]} == files
    assert service["spec"]["selector"] == pods["spec"]["selector"]["matchLabels"]
    assert service["metadata"]["name"] == pods["spec"]["serviceName"]
    [wildcard] = certificate["spec"]["dnsNames"]
    assert container["args"][0].endswith(wildcard.removeprefix("*"))
    assert container["args"][2] == f"{mounts['config']}/beta.toml"
    assert {"server auth", "client auth"} <= set(certificate["spec"]["usages"])


@pytest.mark.parametrize("name", having("ini"))
def test_ini_parses(name: str, tmp_path: Path) -> None:
    """By Python; a unit by systemd as well, where that is at hand."""
    for block in blocks(TEXTS[name], "ini"):
        parser = configparser.ConfigParser(strict=False, interpolation=None)
        parser.read_string(block.text)
        assert parser.sections()
        file = file_name(block)
        if file is not None and file.endswith(".service") and shutil.which("systemd-analyze"):
            # The programs of the unit need not be installed here.
            unit = re.sub(r"^(Exec\w+)=\S+", r"\1=/bin/true", block.text, flags=re.MULTILINE)
            (tmp_path / file).write_text(unit, encoding="utf-8")
            done = subprocess.run(
                ["systemd-analyze", "verify", "--man=no", tmp_path / file],
                capture_output=True,
                text=True,
                timeout=PATIENCE,
                check=False,
            )
            ours = [line for line in done.stderr.splitlines() if file in line]
            assert not ours


_INSTRUCTIONS: Final = {"FROM", "COPY", "RUN", "ENV", "USER", "EXPOSE", "ENTRYPOINT", "CMD", "WORKDIR", "ARG"}


@pytest.mark.parametrize("name", having("dockerfile"))
def test_a_dockerfile_has_known_instructions(name: str) -> None:
    """Each line is one that builders know."""
    for block in blocks(TEXTS[name], "dockerfile"):
        lines = [line for line in block.text.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]
        assert lines[0].startswith("FROM ")
        assert {line.split()[0] for line in lines} <= _INSTRUCTIONS


@pytest.mark.parametrize("name", having("nginx"))
def test_nginx_takes_it(name: str, tmp_path: Path) -> None:
    """Braces match and each line ends; nginx itself, where it is at hand, takes it among files of the same names."""
    program = shutil.which("nginx", path=os.pathsep.join((os.environ["PATH"], "/usr/sbin", "/usr/local/sbin")))
    for block in blocks(TEXTS[name], "nginx"):
        assert block.text.count("{") == block.text.count("}")
        assert all(line.rstrip().endswith((";", "{", "}")) for line in block.text.splitlines() if line.strip())
        if program is None:
            continue
        authority = CertificateAuthority.create()
        write_key_pair(authority.issue("proxy.example"), tmp_path / "proxy.pem", tmp_path / "proxy-key.pem")
        for pool in ("clients-ca.pem", "backend-ca.pem"):
            write_ca_pool(authority.pool, tmp_path / pool)
        (tmp_path / "nginx.conf").write_text(f"pid {tmp_path}/pid;\nevents {{}}\nhttp {{\n{block.text}\n}}\n", "utf-8")
        done = subprocess.run(
            [program, "-t", "-p", tmp_path, "-c", tmp_path / "nginx.conf", "-e", "stderr"],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", having("bash"))
def test_bash_has_no_syntax_error(name: str) -> None:
    """What is not run here is at least bash."""
    for block in blocks(TEXTS[name], "bash"):
        done = subprocess.run(
            ["bash", "-n"], input=block.text, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")


_DIAGRAMS: Final = re.compile(r"(sequenceDiagram|flowchart (TD|TB|LR))$")


@pytest.mark.parametrize("name", having("mermaid"))
def test_a_diagram_is_of_a_known_kind_and_balanced(name: str) -> None:
    """The first line says which; brackets and quotes are closed, blocks of a sequence are ended."""
    for block in blocks(TEXTS[name], "mermaid"):
        first, *lines = block.text.splitlines()
        assert _DIAGRAMS.match(first)
        for line in lines:
            bare = re.sub(r'"[^"]*"', "", line)
            assert '"' not in bare, line
            if first.startswith("flowchart"):
                assert all(bare.count(a) == bare.count(b) for a, b in ("[]", "{}", "()")), line
        words = [line.split()[0] for line in lines if line.strip()]
        assert words.count("end") == sum(words.count(each) for each in ("alt", "opt", "loop", "par", "subgraph"))
