"""The words of the command line: what the library's texts say of Python names, as options and commands.

Theory. An error of the library carries facts, and a text with the remedy in the names of Python. Whoever typed a
command has no manager to call and no option class to fill in, but flags, files and other commands. So each remedy that
names something of Python has a row here, with what to do on the command line; every text of the library passes through
on its way to a terminal, a log of `trionode serve`, or JSON. A remedy for which this interface has nothing is left out.

Certificates are described in full in the library's texts. On the command line a line is a line: the description goes
below it.
"""

from __future__ import annotations

import re
from typing import Final

#: What a text says, as a pattern, and what the command line says in its place. From the longest to the shortest: rows
#: further up may hold what rows further down look for.
ROWS: Final[tuple[tuple[str, str], ...]] = (
    (r"and rotate to it with manager\.update\(\)", "and put it into the files: a node that serves them follows"),
    (r" \(with rotate_trust\(\) while in use\)|, with rotate_trust\(\) while in use", ""),
    (r"of that CA in crls", "of that CA with --crl"),
    (r", or loosen crl_policy", ""),
    (r"(?:take the lists away \(crls=None\) before you give the new one)", "restart the node"),
    (r"set server_name on the route or the manager", "give --server-name"),
    (r"set server_name to one of them", "give one of them with --server-name"),
    (
        r"raise (max_message_size|max_metadata_size) in the peer's NetworkOptions",
        r"raise \1 at the peer ([network] in the file of trionode serve)",
    ),
    (r"trionode\.generate_cookie\(\) makes one", "`trionode cookie` makes one"),
    (r"give both the same one in their options", "give both the same one (--cookie-file)"),
    (
        r"no such service; register it there with node\.add_service\(\)",
        "no such service: it needs --service in its trionode serve, or add_service in its program",
    ),
    (
        r"or pass stranded=StrandedPeers\.CLOSE to end their connections, KEEP to leave them as they are",
        "or run the node with --stranded close, which ends their connections, or keep, which leaves them as they are",
    ),
    (r"or give an address as the route's host", "or say where to dial with --address (routes: --route NODE=HOST:PORT)"),
    (
        r"""Set host="0\.0\.0\.0" \(or "::"\) in AcceptorOptions to listen on all interfaces, or an address""",
        "Give 0.0.0.0 (or [::]) as its host to listen on all interfaces, or an address",
    ),
    (r"or host='0\.0\.0\.0' \(or '::'\) for all that it has", "or 0.0.0.0 (or [::]) for all that it has"),
    (r"([Gg]ive an address), or host='0\.0\.0\.0'", r"\1, or 0.0.0.0"),
    (r"or open the node under a name that it covers", "or give the node a name that it covers (--as)"),
    (
        r"Choose another port, widen port_range, or port=0 for any free one",
        "Choose another port, or 0 for any free one",
    ),
    (r"give this manager a key pair", "give --cert and --key, or --as, with a certificate"),
    (
        r"client_auth \w+ with neither cookie nor authorize",
        "client certificates are not verified (--client-auth), and there is no --cookie-file",
    ),
    (r"within (?:connect_timeout|handshake_timeout) \(([^)]*)\)", r"within \1"),
    (r"most of connect_timeout \(([^)]*)\)", r"most of \1"),
    (
        r"Have (\S+) among what is permitted when .* or its successor \(begin_roll_over\)",
        r"Make one that may: trionode pki init --permit \1; if nodes use this one, trionode pki roll begin --permit \1",
    ),
    (
        r"and no certificate that is still valid; give a new token",
        "and no certificate that is still valid; give --token-file: `trionode pki token` makes a token where the CA is",
    ),
    (r"\bbind_names=False", "bind_names is off"),
    (r"; call the service directly", "; dial another one, or say by --as who we are"),
    (r"; or set XDG_RUNTIME_DIR, or give LocalRegistry another directory", "; or name another: --registry local:DIR"),
    (
        r"neither XDG_RUNTIME_DIR nor HOME is set; give LocalRegistry one",
        "neither XDG_RUNTIME_DIR nor HOME is set; name one: --registry local:DIR",
    ),
    (r"; give it a directory of its own, or allow_other_files=True", "; name one of its own: --registry local:DIR"),
    (r"\broot_cas and client_cas\b", "--ca"),
    (r"\broot_cas\b", "--root-ca"),
    (r"\bclient_cas\b", "--client-ca"),
)

#: What Python, Trio and we put around the words of the operating system, and around what a source or key pair is.
_NOISE: Final = (
    (re.compile(r"\[Errno -?\d+\] (?:Error connecting to \('[^']*', \d+(?:, \d+)*\): )?"), ""),
    (re.compile(r"<(?:FileSource|KeyPair|PKIDirectory) ((?:[^<>]|<[^<>]*>)*)>"), r"\1"),
    (re.compile(r"<LocalRegistry ([^<>]*)>"), r"the registry local:\1"),
    (re.compile(r"<StaticResolver of ([^<>]*)>"), r"the registry static:\1"),
    (re.compile(r"<EtcdRegistry at ([^<>]*), [^<>]*>"), r"etcd at \1"),
    (re.compile(r"<DNSResolver at ([^<>]*)>"), r"DNS at \1"),
    (re.compile(r"<((?:EST|ACME)Source) (\S+) from ([^<>]*)>"), r"the certificate of \2 from \3"),
    # What is typed may have a password in it that does not belong there.
    (re.compile(r"(\w://)[^\s/@]*:[^\s/@]*@"), r"\1…@"),
)

_ROWS: Final = [(re.compile(pattern), words) for pattern, words in ROWS]

#: What `describe` makes of a certificate, behind its subject.
_DETAILS: Final = re.compile(r" \(((?:(?! \().)*?; issuer .*?; valid from .*? UTC; SHA-256 [0-9a-f]{16}…)\)")
#: The end of a subject, in a text: for the line that its details get.
_SUBJECT: Final = re.compile(r"(?:\w+=(?:\\.|[^;:()\\])*)$")


def in_command_words(text: str) -> str:
    """A text of the library in the words of the command line."""
    for pattern, words in _ROWS:
        text = pattern.sub(words, text)
    for noise, kept in _NOISE:
        text = noise.sub(kept, text)
    return text


def one_line(text: str) -> tuple[str, list[str]]:
    """A text without what it says of certificates beside their subjects; and that, a line for each certificate."""
    details: list[str] = []
    for found in _DETAILS.finditer(text):
        subject = _SUBJECT.search(text, 0, found.start())
        line = f"{subject[0].strip() if subject else 'certificate'}: {found[1]}"
        if line not in details:
            details.append(line)
    return _DETAILS.sub("", text), details
