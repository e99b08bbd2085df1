"""What is released: sdist and wheel are complete, equal and enough, in an environment that has nothing else.

They are built without isolation, by the backend that the `test` extra brings: it is what pip would fetch.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import BytesParser
from email.policy import compat32
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from markdown_it import MarkdownIt

import trionode
from once import made_once

if TYPE_CHECKING:
    from email.message import Message

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(not (ROOT / "trionode").is_dir(), reason="builds packages, which takes a checkout")
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
STEM = f"{PROJECT['name']}-{PROJECT['version']}"
WHEEL = f"{STEM}-py3-none-any.whl"
#: The interpreter of an environment, in the directory that `install` is given.
PYTHON = Path("venv", "bin", "python")

PIP = (sys.executable, "-m", "pip")

#: Every process is bounded by this; pip may have to download. Seconds.
PATIENCE = 120

#: Two nodes on mutual TLS, with nothing but the package.
TALK = """
import trio, trionode
from trionode import AcceptorOptions, CertAuthManager, ClientAuth, NetworkMode, NetworkOptions, NodeOptions, Route
from trionode.pki import CertificateAuthority

ca = CertificateAuthority.create()
mode = ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT

def options(name, **network):
    certs = CertAuthManager(ca.issue(name), client_cas=ca.pool, client_auth=mode, root_cas=ca.pool)
    return NodeOptions(cert_manager=certs, network=NetworkOptions(**network), services={"name": tell})

async def tell(channel):
    await channel.send(str(channel.peer.name if channel.peer.verified else None).encode())

async def main():
    listens = options("beta@localhost", acceptors=[AcceptorOptions(host="127.0.0.1", port=0)])
    async with trionode.open_node("beta@localhost", listens) as beta:
        host, port = beta.acceptors[0].address
        async with trionode.open_node("alpha@localhost", options("alpha@localhost", mode=NetworkMode.HIDDEN)) as alpha:
            print(await alpha.call(beta.name, "name", b"", route=Route(host=host, port=port)))

trio.run(main)
"""


def run(*command: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """A program that knows nothing of this checkout."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "COVERAGE_PROCESS_START")}
    return subprocess.run(
        command,
        cwd=folder,
        env=kept | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def succeed(*command: str | Path, folder: Path) -> str:
    """A program that has to succeed; what it says on stdout."""
    done = run(*command, folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# What is in them ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from this directory by what pyproject.toml names; into another, so that nothing is left here."""

    def make(folder: Path) -> None:
        succeed(sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", folder, folder=ROOT)

    return made_once(tmp_path_factory, "sdist", make) / f"{STEM}.tar.gz"


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the sdist, elsewhere."""
    return made_once(tmp_path_factory, "wheel", partial(build_wheel, sdist)) / WHEEL


def build_wheel(source: Path, folder: Path) -> None:
    """As pip builds it."""
    succeed(*PIP, "wheel", "--quiet", "--no-deps", "--no-build-isolation", source, folder=folder)


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    """What an index shows of it."""
    with zipfile.ZipFile(wheel) as archive:
        return BytesParser(policy=compat32).parsebytes(archive.read(f"{STEM}.dist-info/METADATA"))


def sources(*folders: str) -> set[str]:
    """What is in these directories of ours."""
    files = [file for folder in folders for file in (ROOT / folder).rglob("*") if file.is_file()]
    return {str(file.relative_to(ROOT)) for file in files if file.suffix in (".py", ".typed", ".md", ".svg")}


def test_the_sdist_has_all_that_the_tests_need(sdist: Path) -> None:
    """Package, tests, benchmarks and texts; and no keys, caches or reports."""
    with tarfile.open(sdist) as archive:
        names = {name.removeprefix(f"{STEM}/") for name in archive.getnames()}
    texts = {"README.md", "CHANGELOG.md", "LICENSE-MIT", "LICENSE-APACHE", "pyproject.toml", "tests/THREATS.md"}
    assert sources("trionode", "tests", "benchmarks") | texts <= names
    assert not {name for name in names if name.endswith((".pem", ".key", ".pyc")) or "/." in f"/{name}"} - {
        ".gitignore"
    }


def test_the_wheel_has_the_package_and_nothing_else(wheel: Path) -> None:
    """Every module, the marker of its types and the manual; neither tests nor benchmarks; both licences."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    about = {name for name in names if name.startswith(f"{STEM}.dist-info/")}
    assert names - about == sources("trionode")
    assert {"trionode/py.typed", "trionode/manual/README.md", "trionode/manual/api.md"} <= names
    assert {f"{STEM}.dist-info/licenses/LICENSE-{which}" for which in ("MIT", "APACHE")} <= about


def test_the_wheel_is_the_same_from_here_and_from_the_sdist(wheel: Path, tmp_path: Path) -> None:
    """Nothing that the package needs is missing from the sdist."""
    build_wheel(ROOT, tmp_path)
    with zipfile.ZipFile(tmp_path / WHEEL) as ours, zipfile.ZipFile(wheel) as theirs:
        assert {each.filename: each.CRC for each in ours.infolist()} == {
            each.filename: each.CRC for each in theirs.infolist()
        }


def test_the_metadata_say_what_pyproject_does(metadata: Message) -> None:
    """Name, version, Python, licence; each extra; and that it has types."""
    assert (metadata["Name"], metadata["Version"]) == (PROJECT["name"], PROJECT["version"])
    assert (metadata["Requires-Python"], metadata["License-Expression"]) == (">=3.11", "MIT OR Apache-2.0")
    assert set(metadata.get_all("Provides-Extra") or ()) == set(PROJECT["optional-dependencies"])
    classifiers = metadata.get_all("Classifier") or []
    assert classifiers == sorted(PROJECT["classifiers"])
    assert "Typing :: Typed" in classifiers
    needed = [each for each in metadata.get_all("Requires-Dist") or () if "extra ==" not in each]
    assert len(needed) == len(PROJECT["dependencies"])


def test_the_readme_is_the_long_description_and_renders(metadata: Message) -> None:
    """As Markdown: each of its blocks and tables is one, and none shows as text."""
    body = metadata.get_payload(decode=True)
    assert isinstance(body, bytes)
    text = body.decode()
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert text.strip() == (ROOT / "README.md").read_text(encoding="utf-8").strip()
    page = MarkdownIt("commonmark").enable("table").render(text)
    assert page.count("<pre>") * 2 == sum(line.startswith("```") for line in text.splitlines())
    assert page.count("<table>") == text.count("\n| --")
    prose = re.sub(r"<(pre|code)>.*?</\1>", "", page, flags=re.DOTALL)
    assert not any(mark in prose for mark in ("`", "| --", "**", "\n## "))


def test_the_entry_points_are_there() -> None:
    """The command and the plugin, as this environment sees them."""
    [command] = entry_points(group="console_scripts", name="trionode")
    [plugin] = entry_points(group="pytest11", name="trionode.pytest_plugin")
    assert callable(command.load())
    assert plugin.load().__name__ == "trionode.pytest_plugin"


# Installed ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has the wheel and what that depends on, and no extra."""
    return made_once(tmp_path_factory, "installed", partial(install, str(wheel))) / PYTHON


def install(what: str, folder: Path) -> None:
    """Into a new environment; a few modules of many are used, and each is compiled as it is."""
    succeed(sys.executable, "-m", "venv", "--without-pip", "venv", folder=folder)
    succeed(*PIP, "--python", folder / PYTHON, "install", "--quiet", "--no-compile", what, folder=folder)


def test_installed_without_extras_two_nodes_talk(python: Path, tmp_path: Path) -> None:
    """From an empty directory, with warnings as errors; the code is that of the wheel."""
    assert succeed(python, "-W", "error", "-c", TALK, folder=tmp_path) == "b'alpha@localhost'\n"
    where = succeed(python, "-c", "import trionode; print(trionode.__file__)", folder=tmp_path).strip()
    assert Path(where).is_relative_to(python.parent.parent)
    assert Path(where) != Path(trionode.__file__)


def test_without_extras_what_needs_one_says_so(python: Path, tmp_path: Path) -> None:
    """The command in one line, metrics in the text of the ImportError; what needs none is there."""
    for command in ((python.parent / "trionode",), (python, "-m", "trionode", "--version")):
        done = run(*command, folder=tmp_path)
        line = "trionode: the command line needs click; install it with: pip install 'trionode[cli]'\n"
        assert (done.returncode, done.stdout, done.stderr) == (1, "", line)
    metrics = run(python, "-c", "import trionode.metrics", folder=tmp_path)
    assert "pip install 'trionode[metrics]'" in metrics.stderr.splitlines()[-1]
    assert succeed(python, "-c", "import trionode.testing, trionode.pki", folder=tmp_path) == ""


def test_installed_with_the_command_line_it_makes_a_ca(wheel: Path, tmp_path: Path) -> None:
    """The extra is all that it needs; and the command is on the path."""
    install(f"{wheel}[cli]", tmp_path)
    command = (tmp_path / PYTHON).parent / "trionode"
    assert succeed(command, "--version", folder=tmp_path) == f"trionode {PROJECT['version']}\n"
    succeed(command, "pki", "init", folder=tmp_path)
    assert "root" in succeed(command, "pki", "show", folder=tmp_path)
    assert "Usage" in succeed(command, "demo", "--help", folder=tmp_path)
