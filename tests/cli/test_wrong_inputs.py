"""The whole command line, with whatever may be wrong in what is typed: one line that says what, and what to do."""

from __future__ import annotations

import json
import re
import shlex
from typing import TYPE_CHECKING

import pytest

from python_names import PYTHON
from trionode.pki import CertificateAuthority, write_key_pair

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Said

USAGE, FILES, NETWORK, FOUND, REFUSED = 2, 3, 4, 1, 5

ALPHA = "--cert alpha.pem --key alpha.key --ca ca.pem"

#: What is typed; how it ends; and what the line has in it.
WRONG: dict[str, tuple[int, str]] = {
    # No such thing
    "dance": (USAGE, "No such command 'dance'"),
    "pki dance": (USAGE, "No such command 'dance'"),
    "serve --nonsense": (USAGE, "No such option"),
    "check --cret alpha.pem": (USAGE, "--cert"),
    "manual no-such-page": (USAGE, "there is no topic 'no-such-page'"),
    "manual --search xyzzyplugh": (FOUND, "is not in the manual"),
    "manual --search ''": (USAGE, "--search: a word"),
    "completion tcsh": (USAGE, "'bash', 'zsh', 'fish'"),
    # Files
    "check": (USAGE, "no certificate was given: use --cert and --key"),
    "check --cert missing.pem": (FILES, "cannot read missing.pem: No such file or directory"),
    "check --cert .": (FILES, "cannot read .: Is a directory"),
    "check --cert empty": (FILES, "no PEM certificate in empty"),
    "check --cert alpha.key": (FILES, "are the two files swapped?"),
    "check --cert alpha.pem": (FILES, "no PEM private key in alpha.pem"),
    "check --cert alpha.pem --key beta.key": (FILES, "does not belong to the leaf certificate"),
    "check --cert binary --key alpha.key": (FILES, "binary"),
    "check --key alpha.key": (USAGE, "--key was given without --cert"),
    "check --cert alpha.pem --key locked.key": (FILES, "--password-file"),
    "check --cert alpha.pem --key locked.key --password-file empty": (FILES, "empty is empty; its first line is used"),
    "check --cert alpha.pem --key locked.key --password-file text": (FILES, "--password-file"),
    "check --cert alpha.pem --key alpha.key --ca alpha.key": (FILES, "no PEM certificate in alpha.key"),
    "check --cert alpha.pem --key alpha.key --ca missing.pem": (FILES, "cannot read missing.pem"),
    "check --cert alpha.pem --key alpha.key --crl ca.pem": (FILES, "ca.pem"),
    "check --cert alpha.pem --key alpha.key --crl binary": (FILES, "binary"),
    "check --cert alpha.pem --key alpha.key --pki pki": (USAGE, "--pki and --cert (or --key) exclude each other"),
    "check --crl a.crl --no-crl alpha@localhost": (USAGE, "--crl and --no-crl exclude each other"),
    "check gamma@localhost": (FILES, "make them with: trionode pki issue gamma@localhost"),
    "check gamma@localhost --pki other": (FILES, "trionode pki issue --pki other gamma@localhost"),
    "check --pki text gamma@localhost": (USAGE, "'text' is a file"),
    "check --client-auth require-any": (USAGE, "no certificate was given"),
    f"check --client-auth maybe {ALPHA}": (USAGE, "'require-and-verify'"),
    "check --client-auth require-and-verify --cert alpha.pem --key alpha.key": (USAGE, "needs --ca or --client-ca"),
    f"check {ALPHA} a@b@c": (USAGE, "host 'b@c'"),
    f"check {ALPHA} 'no host'": (USAGE, "no host"),
    f"check {ALPHA} localhost:15000": (USAGE, "write localhost"),
    f"check {ALPHA} alpha@localhost:15000": (USAGE, "write alpha@localhost"),
    f"check {ALPHA} [::1]:15000": (USAGE, "write [::1]"),
    "check --cert ''": (USAGE, "'--cert': the path is empty"),
    "check alpha@localhost --pki ''": (USAGE, "'--pki': the path is empty"),
    # Making certificates
    "pki init --pki ''": (USAGE, "'--pki': the path is empty"),
    "pki init --pki new --common-name ''": (USAGE, "'--common-name': a common name has at least one character"),
    f"pki init --pki new --common-name {'x' * 65}": (USAGE, "longer than the 64 bytes"),
    "pki init --pki new --permit 10.0.0.1/8": (USAGE, "write 10.0.0.0/8 for all of it"),
    "pki init --pki new --permit 10.0.0.0/33": (USAGE, "'10.0.0.0/33' is no network: write 10.0.0.0/32"),
    f"pki roll begin --common-name {'x' * 65}": (USAGE, "longer than the 64 bytes"),
    "pki unrevoke": (USAGE, "Missing argument 'NAME|FILE..."),
    "pki init": (FILES, "is there already"),
    "pki issue": (USAGE, "Missing argument"),
    "pki issue --lifetime 0d beta@localhost": (USAGE, "'0d' is zero"),
    "pki issue --lifetime soon beta@localhost": (USAGE, "'soon' is no duration"),
    "pki issue --lifetime 99999999999999w beta@localhost": (USAGE, "longer than any date"),
    "pki issue @localhost": (USAGE, "node name part ''"),
    "pki issue --pki other beta@localhost": (FILES, "other"),
    "pki show missing.pem": (FILES, "there is neither a file missing.pem"),
    "pki show binary": (FILES, "binary"),
    "pki revoke nobody@localhost": (FILES, "there is neither a file nobody@localhost"),
    "pki unrevoke nobody@localhost": (FILES, "there is neither a file nobody@localhost"),
    "pki revoke ca.pem": (FILES, "CA"),
    "pki token": (USAGE, "Missing argument"),
    "pki serve --pki other": (FILES, "make one with: trionode pki init --pki other"),
    "pki serve --crl-listen no.host.invalid:1": (NETWORK, "(--crl-listen HOST:PORT)"),
    "pki serve --listen no.host.invalid:1": (NETWORK, "ive an address, or 0.0.0.0"),
    "join": (USAGE, "Missing argument"),
    "join https://localhost": (USAGE, "`trionode pki token NAME` makes one"),
    "members": (USAGE, "Give --registry URL"),
    "members --registry local:text": (FILES, "or name another: --registry local:DIR"),
    "members --registry static:missing": (FILES, "cannot read missing"),
    "members --registry static:text": (FILES, "text is not valid TOML"),
    "members --registry static:typo.toml": (FILES, "must have one table, [nodes]"),
    "members --registry dns:?worker": (USAGE, "write ?NAME=SRVNAME"),
    "members --registry etcd://root@localhost": (USAGE, "give it by --registry-password-file"),
    "members --registry local: --timeout nan": (USAGE, "'--timeout': 'nan' is not a number"),
    # Serving
    "serve": (USAGE, "which node? Give its name, name@host"),
    "serve localhost": (USAGE, "localhost"),
    "serve https://localhost": (USAGE, "localhost"),
    f"serve alpha@localhost {ALPHA} --listen localhost": (USAGE, "'--listen': 'localhost' has no port"),
    f"serve alpha@localhost {ALPHA} --listen http://localhost:1": (USAGE, "'--listen': 'http://localhost:1' is a URL"),
    f"serve alpha@localhost {ALPHA} --listen localhost:70000": (USAGE, "'--listen': '70000' is no port"),
    f"serve alpha@localhost {ALPHA} --listen 203.0.113.7:1": (NETWORK, "0.0.0.0 (or [::]) for all that it has"),
    f"serve alpha@localhost {ALPHA} --route beta": (USAGE, "'--route': 'beta' is no route; write NODE=HOST:PORT"),
    f"serve alpha@localhost {ALPHA} --route b@c=x:y": (USAGE, "'--route': 'y' is no port"),
    f"serve alpha@localhost {ALPHA} --service x=y": (USAGE, "'y' is not MODULE:FUNCTION"),
    f"serve alpha@localhost {ALPHA} --service x=no_such_module:f": (USAGE, "cannot import no_such_module:f"),
    f"serve alpha@localhost {ALPHA} --service x=os:sep": (USAGE, "is no async function"),
    f"serve alpha@localhost {ALPHA} --asgi app": (USAGE, "'app' is not MODULE:NAME"),
    f"serve alpha@localhost {ALPHA} --asgi os:sep": (USAGE, "is no ASGI 3 application"),
    f"serve alpha@localhost {ALPHA} --cookie-file short": (FILES, "`trionode cookie` makes one"),
    f"serve alpha@localhost {ALPHA} --cookie-file missing": (FILES, "cannot read missing"),
    "serve alpha@localhost --cert alpha.pem --key alpha.key": (USAGE, "give --ca or --client-ca"),
    "serve --config missing.toml": (FILES, "cannot read missing.toml"),
    "serve --config text": (USAGE, "text is not valid TOML"),
    "serve --config typo.toml": (USAGE, "did you mean 'services'?"),
    "serve --config kind.toml": (USAGE, "has to be a whole number"),
    "serve --config both.toml": (USAGE, "exclude each other"),
    "serve --config bounds.toml": (USAGE, "handshake_timeout"),
    "serve --config registry.toml": (USAGE, "registry.toml: [network]: 'foo' is no registry"),
    "serve --config password.toml": (USAGE, "password.toml: [network]: registry etcd://…@localhost"),
    "serve --config metrics.toml": (USAGE, "'metrics.toml: metrics': '9090' has no port"),
    f"serve alpha@localhost {ALPHA} --asgi application:app --asgi-listen localhost:x": (USAGE, "'--asgi-listen': 'x'"),
    "serve alpha@localhost --join https://localhost:1": (REFUSED, "give --token-file: `trionode pki token` makes"),
    # Dialling
    "call": (USAGE, "Missing argument"),
    "call beta@localhost": (USAGE, "Missing argument"),
    f"call localhost echo {ALPHA}": (USAGE, "a node's name is name@host, not 'localhost'"),
    f"call https://localhost echo {ALPHA}": (USAGE, "is a URL"),
    f"call beta@localhost echo {ALPHA} --as localhost": (USAGE, "'--as'"),
    f"call beta@localhost echo {ALPHA} --address 127.0.0.1:0x1": (USAGE, "'--address': '0x1' is no port"),
    f"call beta@localhost echo hi {ALPHA} --address 127.0.0.1:1": (NETWORK, "Is the node running there"),
    f"call beta@localhost echo hi {ALPHA} --cookie-file short": (FILES, "`trionode cookie` makes one"),
    "call beta@localhost echo hi --as gamma@localhost": (FILES, "trionode pki issue gamma@localhost"),
    f"call beta@localhost echo {ALPHA} --server-name 'a b'": (USAGE, "a b"),
    f"ping beta@localhost {ALPHA} --address 127.0.0.1:1": (NETWORK, "cannot connect to 127.0.0.1 port 1"),
    f"ping beta@no.host.invalid {ALPHA}": (NETWORK, "--address"),
    f"ping beta@localhost {ALPHA} -c many": (USAGE, "'-c'"),
    f"ping beta@localhost {ALPHA} --timeout nan": (USAGE, "'nan' is not a number"),
    f"ping beta@localhost {ALPHA} -i nan": (USAGE, "'nan' is not a number"),
    f"ping alpha@localhost {ALPHA}": (USAGE, "dial another one, or say by --as who we are"),
    f"ping beta@localhost {ALPHA} --registry local:empty-directory": (NETWORK, "the registry local:empty-directory"),
    f"call beta@localhost echo hi {ALPHA} --timeout nan": (USAGE, "'nan' is not a number"),
    f"call beta@localhost echo hi {ALPHA} --server-name localhost:1": (USAGE, "'--server-name'"),
    f"call beta@localhost echo hi {ALPHA} --address localhost:0": (USAGE, "'--address': port"),
    f"call https://user@localhost echo {ALPHA}": (USAGE, "'https://user@localhost' is a URL"),
    "explain": (USAGE, "Missing argument"),
    "explain localhost --timeout nan": (USAGE, "'nan' is not a number"),
    "explain localhost --server-name ''": (USAGE, "'--server-name': host ''"),
    "explain https://localhost": (USAGE, "'NODE': 'https://localhost' is a URL"),
    "explain localhost --timeout 0": (USAGE, "'--timeout'"),
    "explain localhost --expect-cert missing.pem": (FILES, "cannot read missing.pem"),
    "explain localhost --cert alpha.pem --key beta.key": (FILES, "does not belong to the leaf certificate"),
    # Watching
    "status nobody@localhost": (FOUND, "no node nobody@localhost"),
    "status --interval 0": (USAGE, "--interval"),
    "status --watch nan": (USAGE, "'nan' is not a number"),
    "demo --directory text": (USAGE, "'text' is a file"),
}

FILES_THERE = {
    "empty": b"",
    "text": b"just some words\n",
    "short": b"short\n",
    "binary": bytes(range(256)),
    "typo.toml": b'name = "alpha@localhost"\n[service]\necho = "echo"\n',
    "kind.toml": b'name = "alpha@localhost"\n[[acceptors]]\nport = "many"\n',
    "both.toml": b'name = "alpha@localhost"\npki = "pki"\n[credentials]\ncert = "alpha.pem"\n',
    "registry.toml": b'name = "alpha@localhost"\npki = "pki"\n[network]\nregistry = "foo"\n',
    "metrics.toml": b'name = "alpha@localhost"\npki = "pki"\nmetrics = "9090"\n',
    "password.toml": b'name = "alpha@localhost"\npki = "pki"\n[network]\nregistry = "etcd://root:sesame@localhost"\n',
    "application.py": b"async def app(scope, receive, send): ...\n",
    "bounds.toml": b'name = "alpha@localhost"\npki = "pki"\n[network]\nhandshake_timeout = -1\n',
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with everything that the table names."""
    place = tmp_path_factory.mktemp("wrong")
    ca = CertificateAuthority.create()
    ca.save(place / "pki")
    (place / "ca.pem").write_bytes((place / "pki" / "ca.pem").read_bytes())
    for name in ("alpha", "beta"):
        write_key_pair(ca.issue(f"{name}@localhost"), place / f"{name}.pem", place / f"{name}.key")
    write_key_pair(ca.issue("alpha@localhost"), place / "alpha@localhost.pem", place / "locked.key", password=b"secret")
    for name in ("alpha@localhost.pem", "alpha@localhost-key.pem"):
        (place / "pki" / name).write_bytes((place / f"alpha.{'key' if 'key' in name else 'pem'}").read_bytes())
    for name, content in FILES_THERE.items():
        (place / name).write_bytes(content)
    (place / "empty-directory").mkdir(mode=0o700)
    return place


@pytest.mark.parametrize("columns", [80, 40])
@pytest.mark.parametrize("typed", WRONG)
def test_wrong_input(
    typed: str, columns: int, files: Path, trionode_command: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line on stderr, whatever the width; with `--json` it is on stdout as well. It names nothing of Python."""
    status, words = WRONG[typed]
    monkeypatch.chdir(files)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(files))
    if typed.startswith("serve") and status not in (NETWORK, REFUSED):
        monkeypatch.setattr("trionode.cli.serve.run", pytest.fail)  # nothing is started
    said = trionode_command(*shlex.split(typed))
    said.is_one_line(words, status=status)
    assert not PYTHON.search(said.err.replace("ModuleNotFoundError", ""))
    assert "\x1b" not in said.err
    if columns == 40:
        with_json = trionode_command(*shlex.split(typed), "--json")
        error = json.loads(with_json.out)["error"]
        if not re.search(r"No such option:? '?--json", with_json.err):  # older ones of click do not quote it
            assert (error["status"], with_json.status) == (status, status)
            assert words in error["message"]


@pytest.mark.parametrize(
    "typed",
    [
        f"members --registry etcd://root:sesame@localhost {ALPHA}",
        f"members --registry nats://root:sesame@localhost {ALPHA}",
        f"serve alpha@localhost {ALPHA} --registry etcd://root:sesame@localhost",
        "serve --config password.toml",
        "explain https://root:sesame@localhost",
        f"call https://root:sesame@localhost echo hi {ALPHA}",
        "join https://root:sesame@localhost --token {token}",
    ],
)
def test_a_password_in_a_url_is_not_shown(
    typed: str, files: Path, trionode_command: Callable[..., Said], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Stderr goes into logs, and JSON into other programs."""
    monkeypatch.chdir(files)
    token = trionode_command("pki", "token", "alpha@localhost").out.strip()
    words = shlex.split(typed.replace("{token}", token))
    if words[0] == "join":
        words += ["--pki", str(tmp_path)]
    said = trionode_command(*words, "--json")
    assert said.status == USAGE
    assert "localhost" in said.err
    assert "sesame" not in said.err + said.out


def test_a_group_without_a_command_shows_what_there_is(trionode_command: Callable[..., Said]) -> None:
    """As `trionode` alone does."""
    said = trionode_command("pki")
    assert (said.status, said.err) == (0, "")
    assert "Commands:" in said.out
