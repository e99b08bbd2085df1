"""What a run was made with: versions, machine, commit, date. Numbers without these are worth nothing."""

from __future__ import annotations

import os
import platform
import ssl
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from cryptography.hazmat.backends.openssl.backend import backend

import trionode

#: The directory that trionode was imported from: a checkout, or where it is installed.
SOURCE: Final = Path(trionode.__file__).resolve().parents[1]

PACKAGES: Final = (
    "trionode",
    "trio",
    "pyOpenSSL",
    "cryptography",
    "grpcio",
    "uvloop",
    "websockets",
    "trio-websocket",
)


def not_installed(*modules: str) -> str | None:
    """Which of these modules are missing, and how to install them, in words; None if all are there."""
    absent = [module for module in modules if find_spec(module) is None]
    return f"{', '.join(absent)} not installed (pip install -e '.[bench]')" if absent else None


def versions() -> dict[str, str]:
    """Of everything that takes part; "absent" for what is not installed."""
    found = {"python": f"{platform.python_implementation()} {platform.python_version()}"}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    found["OpenSSL under ssl"] = ssl.OPENSSL_VERSION
    found["OpenSSL under pyOpenSSL"] = backend.openssl_version_text()
    return found


def machine() -> dict[str, str | int | float]:
    """CPU, cores that we may use, memory, kernel, and what else ran when we began."""
    return {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": f"{platform.system()} {platform.release()}",
        "load": round(os.getloadavg()[0], 2),
    }


def cpu_model() -> str:
    """As Linux names it; what Python knows elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def commit(checkout: Path = SOURCE) -> str:
    """Of a checkout, with a + where files differ from it; "unknown" where there is no git, or no checkout."""
    if not (checkout / ".git").exists():  # an installed package may lie within a checkout of something else
        return "unknown"
    try:
        head = _git(checkout, "rev-parse", "--short=12", "HEAD")
        return head + ("+" if _git(checkout, "status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def environment() -> dict[str, object]:
    """All of it, for the first line of a JSON file."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "versions": versions(),
        "machine": machine(),
    }


def _git(checkout: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(checkout), *arguments],  # noqa: S607 -- whichever git there is
        capture_output=True,
        text=True,
        check=True,
        timeout=10,
    )
    return done.stdout.strip()
