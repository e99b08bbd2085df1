"""The local registry: the nodes of one user on one machine."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

import trionode
import trionode.discovery
from trionode import (
    AcceptorOptions,
    ConnectionDown,
    ConnectorChanged,
    ConnectorPhase,
    Endpoint,
    LocalRegistry,
    NamingResolver,
    NetworkMode,
    NodeName,
    NoRouteError,
    PeerFound,
    PeerLost,
    ResolverError,
    ResolverTrouble,
    WatchingResolver,
)
from trionode.discovery import local

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from contextlib import AbstractAsyncContextManager
    from typing import TypeAlias

    from conftest import NodeFactory

    from trionode import (
        EventStream,
        ServiceChannel,
    )
    from trionode.pki import CertificateAuthority

    Registered: TypeAlias = Callable[..., AbstractAsyncContextManager[None]]

ALPHA, BETA = NodeName.parse("alpha@localhost"), NodeName.parse("beta@localhost")


async def echo(channel: ServiceChannel) -> None:
    """Send back what comes."""
    async for message in channel:
        await channel.send(message)


async def event_of(events: EventStream, kind: Any) -> Any:
    """The next event of a kind."""
    async for event in events:
        if isinstance(event, kind):
            return event
    raise AssertionError("the node ended")


@pytest.fixture
def registry(tmp_path: Path) -> LocalRegistry:
    """A registry of this test's own."""
    return LocalRegistry(tmp_path / "registry")


def file_of(registry: LocalRegistry, name: NodeName) -> Path:
    """Where a name's entry is."""
    return registry.directory / f"{hashlib.sha256(str(name).encode()).hexdigest()}.json"


def entry(name: NodeName = BETA, **fields: Any) -> dict[str, Any]:
    """An entry of this very process."""
    started = local._process_started(os.getpid())
    return {
        "name": str(name),
        "process": os.getpid(),
        "started": started,
        "endpoints": [["127.0.0.1", 7000]],
        **fields,
    }


def plant(registry: LocalRegistry, content: dict[str, Any] | bytes, name: NodeName = BETA) -> Path:
    """Put something where a name's entry is."""
    registry.directory.mkdir(mode=0o700, exist_ok=True)
    file = file_of(registry, name)
    file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return file


@pytest.fixture
def dead_process() -> int:
    """The number of a process that was there and is gone."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize("what", ["entry", "process", "directory"])
async def test_without_descriptors_nothing_is_gone(
    registry: LocalRegistry, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """What cannot be looked at is there all the same: an outage, after which nothing has been removed."""
    file = plant(registry, entry())
    works, listed = os.open, os.listdir

    def opens(path: Any, *args: Any, **options: Any) -> int:
        name = os.fspath(path)
        if (what == "entry" and ".json" in name) or (what == "directory" and name == str(registry.directory)):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return works(path, *args, **options)

    def reads(self: Path) -> bytes:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(self))

    with trio.fail_after(10), monkeypatch.context() as patch:
        patch.setattr(os, "open", opens)
        if what == "process":
            patch.setattr(Path, "read_bytes", reads)
        register = partial(registry.register, ALPHA, [("127.0.0.1", 1)])
        for operation in (partial(registry.resolve, BETA), register, partial(names_of, registry)):
            with pytest.raises(ResolverError, match="no descriptors left"):
                await operation()
    assert listed(registry.directory) == [file.name]
    assert await registry.resolve(BETA) == [Endpoint("127.0.0.1", 7000)]


async def names_of(registry: LocalRegistry) -> Any:
    """Which nodes are registered."""
    async with registry.names() as answers:
        return await answers.receive()


def test_it_has_two_addresses() -> None:
    """It can be imported from the package of resolvers and from the top."""
    assert trionode.discovery.LocalRegistry is trionode.LocalRegistry


async def test_nodes_on_one_machine_find_each_other(node: NodeFactory, registry: LocalRegistry) -> None:
    """Nodes with one registry find each other by name, whatever ports they have, with nothing else running."""
    with trio.fail_after(10):
        async with (
            node(str(ALPHA), resolver=registry, services={"echo": echo}) as alpha,
            node(str(BETA), resolver=LocalRegistry(registry.directory), services={"echo": echo}) as beta,
        ):
            assert await alpha.call(BETA, "echo", b"x") == b"x"
            assert await beta.call(ALPHA, "echo", b"y") == b"y"
            assert await registry.resolve(BETA) == [Endpoint(*beta.acceptors[0].address)]
            assert await registry.resolve(NodeName.parse("gamma@localhost")) == []
        assert await registry.resolve(BETA) == []
        assert not list(registry.directory.iterdir())


async def test_every_listener_is_registered(registered: Registered, node: NodeFactory, registry: LocalRegistry) -> None:
    """Every address that a node listens on is registered; one that means all interfaces, as loopback."""
    plans = [AcceptorOptions(host="0.0.0.0", port=0)]  # noqa: S104 -- what is tested
    with trio.fail_after(10):
        async with node(str(BETA), resolver=registry, acceptors=plans) as beta:
            assert await registry.resolve(BETA) == [Endpoint("127.0.0.1", beta.acceptors[0].address[1])]
        async with registered(registry, BETA, [("::", 7), ("::1", 8), ("192.0.2.1", 9)]):
            found = [Endpoint("::1", 7), Endpoint("::1", 8), Endpoint("192.0.2.1", 9)]
            assert await registry.resolve(BETA) == found


async def test_node_that_does_not_listen_is_not_registered(
    registered: Registered, node: NodeFactory, registry: LocalRegistry
) -> None:
    """A hidden node uses the registry and is not in it."""
    with trio.fail_after(10):
        async with (
            node(str(BETA), resolver=registry, services={"echo": echo}),
            node(str(ALPHA), resolver=registry, mode=NetworkMode.HIDDEN) as alpha,
        ):
            assert await alpha.call(BETA, "echo", b"x") == b"x"
            assert await registry.resolve(ALPHA) == []


async def test_many_listeners_do_not_damage_the_entry(registered: Registered, registry: LocalRegistry) -> None:
    """However many addresses a node has, its entry can be read."""
    async with registered(registry, BETA, [("127.0.0.1", port) for port in range(1, 5000)]):
        assert len(await registry.resolve(BETA)) == 32


async def test_names_are_told_apart_exactly(registered: Registered, registry: LocalRegistry) -> None:
    """Names that differ in case only, and names as long as they may be, have entries of their own."""
    names = [BETA, NodeName.parse("Beta@localhost"), NodeName.parse(f"{'b' * 240}@localhost")]
    async with registered(registry, names[0], [("127.0.0.1", 1)]), registered(registry, names[1], [("127.0.0.1", 2)]):
        async with registered(registry, names[2], [("127.0.0.1", 3)]):
            for number, name in enumerate(names, start=1):
                assert await registry.resolve(name) == [Endpoint("127.0.0.1", number)]


# Its directory --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0, 0o077, 0o777])
async def test_directory_is_made_private(registered: Registered, registry: LocalRegistry, umask: int) -> None:
    """The directory is made with mode 0700, whatever the umask, and entries with mode 0600."""
    before = os.umask(umask)
    try:
        async with registered(registry, BETA, [("127.0.0.1", 7)]):
            assert stat.S_IMODE(registry.directory.stat().st_mode) == 0o700
            [file] = registry.directory.iterdir()
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
    finally:
        os.umask(before)


async def refuse(registry: LocalRegistry, registered: Registered, match: str) -> None:
    """Check that a registry refuses to be read and to be written, and that text and node say so."""
    with pytest.raises(ResolverError, match=match):
        await registry.resolve(BETA)
    with pytest.raises(ResolverError, match=match):
        async with registered(registry, BETA, [("127.0.0.1", 7)]):
            pytest.fail("it was registered")


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o770, 0o777, 0o701, 0o702])
async def test_directory_that_others_can_use_is_refused(
    registered: Registered, registry: LocalRegistry, mode: int
) -> None:
    """A directory that other users may read, write or enter is refused; it is neither used nor changed."""
    registry.directory.mkdir()
    registry.directory.chmod(mode)
    await refuse(registry, registered, rf"not private .*mode {mode:04o}.*chmod 700")
    assert stat.S_IMODE(registry.directory.stat().st_mode) == mode
    assert not list(registry.directory.iterdir())


async def test_directory_of_another_user_is_refused(
    registered: Registered, registry: LocalRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory whose owner is not who we are is refused."""
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    await refuse(registry, registered, f"not private .owner {owner}")


async def test_directory_that_is_a_link_is_refused(
    registered: Registered, registry: LocalRegistry, tmp_path: Path
) -> None:
    """A link in the directory's place is refused, wherever it leads: another user may have put it there."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    registry.directory.symlink_to(elsewhere)
    await refuse(registry, registered, "not a link")
    assert not list(elsewhere.iterdir())
    registry.directory.unlink()
    registry.directory.symlink_to(tmp_path / "nowhere")
    await refuse(registry, registered, "not a link")
    assert not (tmp_path / "nowhere").exists()


async def test_directory_that_is_a_file_is_refused(registered: Registered, registry: LocalRegistry) -> None:
    """A file in the directory's place is refused."""
    registry.directory.write_text("")
    await refuse(registry, registered, "cannot be used")


async def test_there_is_no_shared_fallback(node: NodeFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the private directory cannot be used the node does not open; it looks for no other place."""
    (tmp_path / "trionode").mkdir()
    (tmp_path / "trionode").chmod(0o777)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with trio.fail_after(10):
        with pytest.raises(ResolverError, match="not private"):
            async with node(str(ALPHA), resolver=LocalRegistry()):
                pytest.fail("the body ran")
        (tmp_path / "trionode").chmod(0o700)
        async with node(str(ALPHA), resolver=LocalRegistry()) as alpha, alpha.events() as events:
            (tmp_path / "trionode").chmod(0o777)
            with pytest.raises(NoRouteError, match="not private"):
                await alpha.connect(BETA)
            assert isinstance((await event_of(events, ResolverTrouble)).error.__cause__, ResolverError)


def test_default_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default it is in $XDG_RUNTIME_DIR, or in ~/.local/state where that is not set, or is none (relative)."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    assert LocalRegistry().directory == tmp_path / "run" / "trionode"
    for none in "", "run/user/1000":
        monkeypatch.setenv("XDG_RUNTIME_DIR", none)
        assert LocalRegistry().directory == tmp_path / "home" / ".local" / "state" / "trionode"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert LocalRegistry().directory == tmp_path / "home" / ".local" / "state" / "trionode"
    assert "home" in repr(LocalRegistry())


async def test_default_directory_is_made_on_the_way(
    registered: Registered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A home without ~/.local/state gets one; only the registry's own directory is made private."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    registry = LocalRegistry()
    assert not registry.directory.exists()
    async with registered(registry, BETA, [("127.0.0.1", 7)]):
        assert await registry.resolve(BETA) == [Endpoint("127.0.0.1", 7)]


def test_no_home_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is neither a run-time directory nor a home, the error says what to give."""
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)

    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    with pytest.raises(ResolverError, match="give LocalRegistry one"):
        LocalRegistry()


async def test_directory_with_other_files_is_refused(
    registered: Registered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A home, for one: nothing of it is touched, however old; told so, the registry lives beside it."""
    tmp_path.chmod(0o700)  # noqa: ASYNC240 -- a few
    keys = [tmp_path / "id_ed25519", tmp_path / ".profile", tmp_path / "a.json", tmp_path / f"{'a' * 63}.json"]
    for key in keys:
        key.write_text("precious")
        os.utime(key, (0, 0))
    with pytest.raises(ResolverError, match=r"holds other files \('\.profile', …\).*allow_other_files=True"):
        async with registered(LocalRegistry(tmp_path), BETA, [("127.0.0.1", 7)]):
            pytest.fail("it was registered")
    monkeypatch.setattr(time, "time", lambda: 1e12)
    async with registered(LocalRegistry(tmp_path, allow_other_files=True), BETA, [("127.0.0.1", 7)]):
        assert await LocalRegistry(tmp_path).resolve(BETA) == [Endpoint("127.0.0.1", 7)]
    assert sorted(tmp_path.iterdir()) == sorted(keys)  # noqa: ASYNC240 -- a few
    assert {key.read_text() for key in keys} == {"precious"}


@pytest.mark.parametrize("umask", [0, 0o077, 0o777])
async def test_missing_parents_are_made_private(registered: Registered, tmp_path: Path, umask: int) -> None:
    """As the directory itself, whatever the umask."""
    directory = tmp_path / "a" / "b" / "c"
    before = os.umask(umask)
    try:
        async with registered(LocalRegistry(directory), BETA, [("127.0.0.1", 7)]):
            made = (directory, directory.parent, directory.parent.parent)
            assert {stat.S_IMODE(each.stat().st_mode) for each in made} == {0o700}
    finally:
        os.umask(before)


async def test_a_registration_looks_at_so_many_entries_at_most(
    registered: Registered, registry: LocalRegistry, dead_process: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a thousand stale entries one costs no more than with a few; over some they all go."""
    names = [NodeName.parse(f"n{number}@localhost") for number in range(200)]
    for name in names:
        plant(registry, entry(name, process=dead_process, started=7.0), name)
    looks = 0
    real = local._expire

    def expire(directory: int, file: str) -> None:
        nonlocal looks
        looks += 1
        real(directory, file)

    monkeypatch.setattr(local, "_expire", expire)
    for count in 1, 2:
        async with registered(registry, BETA, [("127.0.0.1", 7)]):
            assert looks == count * local._LOOKS
    assert len(list(registry.directory.iterdir())) == 200 - 2 * local._LOOKS


async def test_the_event_loop_goes_on_meanwhile(registered: Registered, registry: LocalRegistry) -> None:
    """A file system that hangs holds up threads of the registry's own, and no others."""
    release = threading.Event()
    monkeypatched = pytest.MonkeyPatch()
    monkeypatched.setattr(local, "_read", lambda *_: release.wait(10) and None)
    registry.directory.mkdir(mode=0o700)
    try:
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                for _ in range(100):
                    nursery.start_soon(registry.resolve, BETA)
                await trio.testing.wait_all_tasks_blocked()
                assert await trio.to_thread.run_sync(lambda: 7) == 7
                release.set()
    finally:
        monkeypatched.undo()


# Its entries ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["link", "link to nowhere", "directory", "fifo", "socket"])
async def test_entry_that_is_no_plain_file_is_ignored(
    registered: Registered, registry: LocalRegistry, tmp_path: Path, kind: str
) -> None:
    """Links are not followed and nothing but plain files is read; a registration takes the place of a link."""
    target = tmp_path / "target.json"
    target.write_text(json.dumps(entry()))
    registry.directory.mkdir(mode=0o700)
    file = file_of(registry, BETA)
    if kind == "link":
        file.symlink_to(target)
    elif kind == "link to nowhere":
        file.symlink_to(tmp_path / "nowhere.json")
    elif kind == "directory":
        file.mkdir()
    elif kind == "fifo":
        os.mkfifo(file)
    else:
        os.mknod(file, stat.S_IFSOCK | 0o600)
    with trio.fail_after(5):
        assert await registry.resolve(BETA) == []
        async with registered(registry, ALPHA, [("127.0.0.1", 7)]):  # looks at every entry
            assert await registry.resolve(ALPHA) == [Endpoint("127.0.0.1", 7)]
        if kind == "directory":
            with pytest.raises(ResolverError, match="cannot be registered"):
                async with registered(registry, BETA, [("127.0.0.1", 7)]):
                    pytest.fail("it was registered")
        else:
            async with registered(registry, BETA, [("127.0.0.1", 7)]):
                assert await registry.resolve(BETA) == [Endpoint("127.0.0.1", 7)]
                assert not file.is_symlink()
            assert not file.exists()
    assert json.loads(target.read_text()) == entry()
    assert [path.name for path in registry.directory.iterdir() if path != file] == []


async def test_entry_of_another_user_is_ignored(registry: LocalRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry whose owner is not who we are is ignored, though it lies in our directory."""
    plant(registry, entry())
    assert await registry.resolve(BETA) == [Endpoint("127.0.0.1", 7000)]
    real, us = os.fstat, os.geteuid()

    def fstat(descriptor: int) -> Any:
        status: list[Any] = list(real(descriptor))
        if stat.S_ISREG(status[0]):
            status[4] = us + 1
        return os.stat_result(status)

    monkeypatch.setattr(os, "fstat", fstat)
    assert await registry.resolve(BETA) == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 20_000,
        b"null",
        b'{"name": "beta@localhost"}',
        json.dumps(entry(process="one")).encode(),
        json.dumps(entry(endpoints="127.0.0.1")).encode(),
        json.dumps(entry(endpoints=[["127.0.0.1"]])).encode(),
        json.dumps(entry(endpoints=[["127.0.0.1", 7000]] * 2000)).encode(),
        json.dumps(entry(NodeName.parse("gamma@localhost"))).encode(),
    ],
    ids=range(11),
)
async def test_damaged_entry_is_as_good_as_none(
    registered: Registered, registry: LocalRegistry, content: bytes
) -> None:
    """An entry that cannot be read, or is another's, is ignored; the next registration replaces it."""
    plant(registry, content)
    assert await registry.resolve(BETA) == []
    async with registered(registry, BETA, [("127.0.0.1", 7)]):
        assert await registry.resolve(BETA) == [Endpoint("127.0.0.1", 7)]


@pytest.mark.parametrize("endpoints", [[["no host", 7]], [["127.0.0.1", 0]], [["127.0.0.1", 7], ["127.0.0.1", 70000]]])
async def test_entry_with_impossible_endpoints_is_an_error(registry: LocalRegistry, endpoints: list[Any]) -> None:
    """An entry whose endpoints are none is said to be damaged."""
    plant(registry, entry(endpoints=endpoints))
    with pytest.raises(ResolverError, match="damaged"):
        await registry.resolve(BETA)


async def test_write_is_all_or_nothing(
    registered: Registered, registry: LocalRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A registration that fails half-way, or is cut off, leaves what was there, and nothing else."""
    async with registered(registry, BETA, [("127.0.0.1", 7)]):
        real = os.rename

        def full(*_: Any, **__: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "rename", full)
        with pytest.raises(ResolverError, match=r"beta@localhost cannot be registered in .*No space left on device"):
            async with registered(registry, BETA, [("127.0.0.1", 8)]):
                pytest.fail("it was registered")
        assert await registry.resolve(BETA) == [Endpoint("127.0.0.1", 7)]
        assert len(list(registry.directory.iterdir())) == 1
        monkeypatch.setattr(os, "rename", real)
    assert await registry.resolve(BETA) == []


async def test_what_a_crash_left_behind_is_cleared_away(
    registered: Registered, registry: LocalRegistry, dead_process: int
) -> None:
    """Temporary files of writers that died, and entries of processes that did, go with the next registration."""
    stale = plant(registry, entry(ALPHA, process=dead_process, started=7.0), ALPHA)
    damaged = plant(registry, b"{", NodeName.parse("gamma@localhost"))
    old, young = (registry.directory / f".{letter * 64}.json.{letter * 16}" for letter in "ab")
    for file in old, young:
        file.write_bytes(b"half")
    os.utime(old, (time.time() - 3600,) * 2)
    async with registered(registry, BETA, [("127.0.0.1", 7)]):
        assert not stale.exists()
        assert not old.exists()
        assert young.exists()  # it may be being written
        assert damaged.exists()  # whose it is cannot be told


async def test_entry_of_a_dead_process_expires(registry: LocalRegistry, dead_process: int) -> None:
    """An entry whose process is gone is not an answer, and is removed when it is looked up."""
    file = plant(registry, entry(process=dead_process, started=7.0))
    assert await registry.resolve(BETA) == []
    assert not file.exists()


@pytest.mark.parametrize("process", [-1, 0, 2**40])
async def test_entry_of_a_process_that_cannot_be(registry: LocalRegistry, process: int) -> None:
    """A process number that is none is a process that is gone; so is one whose start was never known."""
    for started in 7.0, 0.0, -1.0:
        plant(registry, entry(process=process, started=started))
        assert await registry.resolve(BETA) == []


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc")
async def test_entry_of_a_process_with_another_start_expires(registry: LocalRegistry) -> None:
    """A live process that got the number of a dead one is told from it by when it started."""
    file = plant(registry, entry(started=entry()["started"] - 1))
    assert await registry.resolve(BETA) == []
    assert not file.exists()


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that does nothing."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        yield process
        process.kill()


def make_zombie(process: subprocess.Popen[bytes]) -> None:
    """Kill it, and see that it is dead, without asking for its exit status."""
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc")
async def test_zombie_is_dead(registry: LocalRegistry, sleeper: subprocess.Popen[bytes]) -> None:
    """A process that was killed, and whose parent has not noticed yet, has no nodes any more."""
    plant(registry, entry(process=sleeper.pid, started=local._process_started(sleeper.pid)))
    assert await registry.resolve(BETA) == [Endpoint("127.0.0.1", 7000)]
    make_zombie(sleeper)
    assert await registry.resolve(BETA) == []


@pytest.mark.skipif(not Path("/proc/self/comm").exists(), reason="no /proc")
def test_process_may_have_any_name() -> None:
    """What a process calls itself does not confuse us about when it started."""
    program = """
        import sys
        with open("/proc/self/comm", "wb") as comm:
            comm.write(b"\\xff) Z 1 2")
        print("ready", flush=True)
        sys.stdin.read()
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        assert 0 < local._process_started(process.pid) >= local._process_started(os.getpid())
        process.kill()


@pytest.mark.parametrize("alive", [True, False])
def test_without_proc_the_number_decides(monkeypatch: pytest.MonkeyPatch, dead_process: int, *, alive: bool) -> None:
    """On a system without /proc a process counts as the same for as long as the number is in use."""
    real = Path.read_bytes

    def read_bytes(self: Path) -> bytes:
        if self.parts[:2] == ("/", "proc"):
            raise FileNotFoundError
        return real(self)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    monkeypatch.setattr(Path, "exists", lambda _: False)
    assert local._process_started(os.getpid() if alive else dead_process) == (0 if alive else -1)

    def not_permitted(*_: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", not_permitted)
    assert local._process_started(1) == 0


def test_process_that_ends_while_it_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that ends between two steps of looking at it is gone."""

    def read_bytes(self: Path) -> bytes:
        raise ProcessLookupError

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    assert local._process_started(os.getpid()) == -1


async def test_successor_keeps_the_name(registered: Registered, registry: LocalRegistry) -> None:
    """A node that ends takes back its own entry only: not that of a successor which has the name already."""
    async with registered(registry, BETA, [("127.0.0.1", 8)]):
        async with registered(registry, BETA, [("127.0.0.1", 7)]):
            pass
        assert await registry.resolve(BETA) == []  # the later one had the name, and took it away again
    async with trio.open_nursery() as first:
        await first.start(registry.register, BETA, [("127.0.0.1", 7)])
        async with registered(registry, BETA, [("127.0.0.1", 8)]):
            first.cancel_scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            assert await registry.resolve(BETA) == [Endpoint("127.0.0.1", 8)]


async def test_newcomer_is_not_removed_in_its_predecessors_place(
    registry: LocalRegistry, dead_process: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stale entry that is replaced in the very moment of its removal is not removed: its successor stays."""
    file = plant(registry, entry(process=dead_process, started=7.0))
    real = local._alive
    arrived = False

    def alive(found: Any) -> bool:
        nonlocal arrived
        verdict = real(found)
        if not verdict and not arrived:  # between the look and the removal
            arrived = True
            plant(registry, entry())
        return verdict

    monkeypatch.setattr(local, "_alive", alive)
    assert await registry.resolve(BETA) == []
    assert arrived
    assert await registry.resolve(BETA) == [Endpoint("127.0.0.1", 7000)]
    assert list(registry.directory.iterdir()) == [file]


# Two processes --------------------------------------------------------------------------------------------------------

PROGRAM = """
    import sys
    import trio
    from trionode import (
        AcceptorOptions, CertAuthManager, ClientAuth, LocalRegistry, NetworkOptions, NodeOptions, open_node
    )
    from trionode.pki import CertificateAuthority


    async def main(name, peer, ca_directory, registry):
        ca = CertificateAuthority.load(ca_directory)
        certs = CertAuthManager(
            ca.issue(name),
            client_cas=ca.pool,
            client_auth=ClientAuth.REQUIRE_AND_VERIFY_CLIENT_CERT,
            root_cas=ca.pool,
        )

        async def relay(channel):
            await channel.send(await node.call(peer, "echo", await channel.receive()))

        network = NetworkOptions(
            acceptors=[AcceptorOptions(host="127.0.0.1", port=0)], resolver=LocalRegistry(registry)
        )
        options = NodeOptions(cert_manager=certs, network=network, services={"relay": relay})
        async with open_node(name, options) as node:
            await node.connect(peer)
            print(node.incarnation, flush=True)
            await trio.sleep_forever()


    trio.run(main, *sys.argv[1:])
"""


@pytest.fixture
def other_process(ca: CertificateAuthority, tmp_path: Path, registry: LocalRegistry) -> Callable[..., Any]:
    """A function that runs a node beta in a process of its own, which has found alpha when the block begins."""
    ca.save(tmp_path / "ca")

    @asynccontextmanager
    async def run() -> AsyncIterator[tuple[trio.Process, int]]:
        arguments = [str(BETA), str(ALPHA), str(tmp_path / "ca"), str(registry.directory)]
        process = await trio.lowlevel.open_process(
            [sys.executable, "-c", textwrap.dedent(PROGRAM), *arguments],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path(trionode.__file__).parents[1])},
        )
        assert process.stdout is not None
        async with process.stdout:
            try:
                line = bytearray()
                while not line.endswith(b"\n"):
                    data = await process.stdout.receive_some()
                    assert data, "the process ended"
                    line += data
                yield process, int(line)
            finally:
                process.kill()
                with trio.CancelScope(shield=True):
                    await process.wait()

    return run


async def test_two_processes_find_each_other_after_a_kill(
    node: NodeFactory, registry: LocalRegistry, other_process: Callable[..., Any]
) -> None:
    """Two processes find each other through the registry, also after one was killed with SIGKILL and restarted."""
    with trio.fail_after(60):
        async with (
            node(str(ALPHA), resolver=registry, services={"echo": echo}) as alpha,
            alpha.events() as events,
            AsyncExitStack() as stack,
        ):
            process, incarnation = await stack.enter_async_context(other_process())
            assert await alpha.call(BETA, "relay", b"there and back") == b"there and back"
            assert alpha.connections[BETA].peer.incarnation == incarnation
            [stale] = await registry.resolve(BETA)
            process.send_signal(signal.SIGKILL)
            assert (await event_of(events, ConnectionDown)).peer.name == BETA
            await process.wait()
            assert file_of(registry, BETA).exists()  # it could not take it back
            with pytest.raises(NoRouteError, match="is that node running"):
                await alpha.connect(BETA)
            assert not file_of(registry, BETA).exists()
            # Kept from now on: the restarted one is found, by whichever side comes first.
            alpha.keep_connected(BETA)
            while (await event_of(events, ConnectorChanged)).state.phase is not ConnectorPhase.WAITING:
                pass
            _, successor = await stack.enter_async_context(other_process())
            connection = await alpha.wait_connected(BETA)
            assert connection.peer.incarnation == successor != incarnation
            assert await alpha.call(BETA, "relay", b"again") == b"again"
            assert await registry.resolve(BETA) != [stale]


# Which nodes there are, and changes ----------------------------------------------------------------------------------


async def test_members_come_and_go(node: NodeFactory, registry: LocalRegistry) -> None:
    """Nodes of other processes would be no different: each is found when it opens, and lost when it leaves."""
    with trio.fail_after(10):
        async with node(str(ALPHA), resolver=registry, keep_connected=["*"]) as alpha, alpha.events() as events:
            other = LocalRegistry(registry.directory)
            async with node(str(BETA), resolver=other, services={"echo": echo}) as beta:
                assert (await event_of(events, PeerFound)).name == BETA
                assert await beta.wait_members("*") == {ALPHA}
                await alpha.wait_connected(BETA)
                assert await alpha.call("b*@*", "echo", b"x") == b"x"
            assert (await event_of(events, PeerLost)).name == BETA
            assert isinstance(registry, NamingResolver)
            assert isinstance(registry, WatchingResolver)


async def test_endpoints_are_watched(
    registry: LocalRegistry, registered: Registered, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Changes arrive, also when the same node registers anew where it was; what others do is not told."""
    monkeypatch.setattr(local, "_POLL", 0.01)
    with trio.fail_after(10):
        async with registry.watch(BETA) as answers:
            assert await answers.receive() == []
            for _ in range(2):
                async with registered(registry, BETA, [("127.0.0.1", 7)]):
                    assert await answers.receive() == [Endpoint("127.0.0.1", 7)]
                assert await answers.receive() == []
            async with registered(registry, ALPHA, [("127.0.0.1", 8)]):
                with trio.move_on_after(0.1):
                    await answers.receive()
                    pytest.fail("it was told of another")


@pytest.fixture
def mortal() -> Iterator[subprocess.Popen[bytes]]:
    """A process that waits to be killed."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


async def test_a_process_that_died_is_noticed(
    registry: LocalRegistry, dead_process: int, mortal: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file stays behind and the directory does not change; it is named no more after a while."""
    monkeypatch.setattr(local, "_POLL", 0.01)
    monkeypatch.setattr(local, "_PULSE", 0.05)
    plant(registry, entry(process=mortal.pid, started=local._process_started(mortal.pid)))
    plant(registry, entry(ALPHA, process=dead_process), ALPHA)
    with trio.fail_after(10):
        async with registry.names() as answers:
            assert set(await answers.receive()) == {BETA}
            mortal.kill()
            mortal.wait()
            assert set(await answers.receive()) == set()


async def test_what_is_no_entry_is_not_named(registry: LocalRegistry) -> None:
    """Damaged files, and those under another name's, cost themselves."""
    plant(registry, entry())
    plant(registry, b"garbage", ALPHA)
    plant(registry, entry(BETA), NodeName.parse("gamma@localhost"))
    plant(
        registry,
        entry(NodeName.parse("delta@localhost"), endpoints=[["no host", 1]]),
        NodeName.parse("delta@localhost"),
    )
    with trio.fail_after(10):
        async with registry.names() as answers:
            assert set(await answers.receive()) == {BETA}


async def test_directory_that_is_not_private_cannot_be_followed(registry: LocalRegistry) -> None:
    """As it cannot be used otherwise."""
    registry.directory.mkdir(mode=0o755)
    with trio.fail_after(10):
        with pytest.raises(ResolverError, match="is not private"):
            async with registry.names() as answers:
                assert [each async for each in answers] == []
