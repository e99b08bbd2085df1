"""The command line, `trionode`: it reads arguments and shows results; the work is done elsewhere.

This package is a program: nothing imports it but its entry point and `__main__`. So where click and rich are missing
(the extra `cli`), importing it ends the program with one line that says what to install.

`program` has the entry point. Each group of commands has a file: `demo`, `pki`, `check`, `explain`, `talk` (call and
ping), `serve`, `status`, `manual`, `completion`, `enrolment` (join). Some have more: `pki_ca`, `pki_issue`,
`pki_revoke`, `pki_serve` and `pki_show` are the commands of `pki`, and `pki_files` is what these share; `inquiry`,
`diagnosis` and `greeting` are the steps of `explain`, `assembly` and `config` the options of `serve`, `rendering` shows
pages of `manual`. Shared by all: `given` (arguments), `paths` (files that are given), `shown` (output), `exits` (exit
statuses and errors), `descriptors`.

Commands that open no node import what they need from where it is. From `trionode` they would get all of it, which
takes longer than most of them take to run.
"""

import sys

from .descriptors import open_missing

open_missing()
try:
    from .program import main as main
except ModuleNotFoundError as _exc:
    _missing = (_exc.name or "").partition(".")[0]
    if _missing not in ("click", "rich"):
        raise
    sys.exit(f"trionode: the command line needs {_missing}; install it with: pip install 'trionode[cli]'")
except KeyboardInterrupt:  # as `program` answers Ctrl-C, once it is imported
    sys.stderr.write("\ntrionode: interrupted; nothing is left running\n")
    sys.exit(130)
