"""The command line, `trionode`: asks and shows; the work is done elsewhere.

This package is a program: nothing imports it but its entry point and `__main__`. So where click and rich are missing
(the extra `cli`), importing it ends the program with the one line that says what to install.

`program` has the entry point; each group of commands has a file of its own (`demo`, `pki`, `check`, `explain`, `talk`,
`serve`, `status`). What they share: `given` reads what was given on the command line, `shown` shows, `exits` says how
the program ends.
"""

import sys

try:
    from .program import main as main
except ModuleNotFoundError as _exc:
    _missing = (_exc.name or "").partition(".")[0]
    if _missing not in ("click", "rich"):
        raise
    sys.exit(f"trionode: the command line needs {_missing}; install it with: pip install 'trionode[cli]'")
except KeyboardInterrupt:  # as `program` answers Ctrl-C, once it is there
    sys.stderr.write("\ntrionode: interrupted; nothing is left running\n")
    sys.exit(130)
