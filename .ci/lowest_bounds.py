"""Print the lowest version that each requirement in pyproject.toml admits, as constraints for pip.

usage: python .ci/lowest_bounds.py [EXTRA ...]   (the project's own requirements, and those of these extras)
"""

import re
import sys
import tomllib
from pathlib import Path

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OWN = re.compile(rf"{PROJECT['name']}\[(?P<extras>[\w,-]+)\]")
BOUND = re.compile(r"(?P<name>[\w.-]+)(\[[\w,-]+\])?\s*>=\s*(?P<version>[\w.]+)(,\s*<[\w.]+)?(\s*;.*)?")


def lowest(extras: list[str]) -> dict[str, str]:
    """The bounds of the project and of these extras, and of the extras that they name."""
    found: dict[str, str] = {}
    left = [*PROJECT["dependencies"], *(f"{PROJECT['name']}[{extra}]" for extra in extras)]
    while left:
        requirement = left.pop()
        if own := OWN.fullmatch(requirement):
            for extra in own["extras"].split(","):
                left += PROJECT["optional-dependencies"][extra]
        elif bound := BOUND.fullmatch(requirement):
            found[bound["name"]] = bound["version"]
        else:
            sys.exit(f"pyproject.toml: {requirement!r} has no lower bound of the form name>=version")
    return found


if __name__ == "__main__":
    for name, version in sorted(lowest(sys.argv[1:]).items()):
        print(f"{name}=={version}")
