"""What is behind an extra says so where its library is absent, and the rest works without."""

from __future__ import annotations

import subprocess
import sys

import pytest

import trionode.discovery


@pytest.mark.parametrize(("module", "name", "extra"), [("h11", "EtcdRegistry", "etcd"), ("dns", "DNSResolver", "dns")])
def test_a_library_that_is_absent(module: str, name: str, extra: str) -> None:
    """The error says what to install; the local registry needs neither."""
    program = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name.partition('.')[0] == {module!r}:\n"
        "            raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from trionode import LocalRegistry, discovery\n"
        "discovery.StaticResolver({})\n"
        "try:\n"
        f"    discovery.{name}\n"
        "except ModuleNotFoundError as exc:\n"
        "    print(exc.name, exc)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True)
    assert done.stdout.startswith(f"{module} trionode.discovery.{name} needs ")
    assert f"pip install 'trionode[{extra}]'" in done.stdout


def test_names_are_listed_and_others_are_none() -> None:
    """Those that are imported when they are asked for, too."""
    assert {"DNSResolver", "EtcdRegistry", "LocalRegistry", "StaticResolver"} <= set(dir(trionode.discovery))
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        trionode.discovery.nope  # noqa: B018
