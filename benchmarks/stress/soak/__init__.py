"""Nodes in processes of their own, for hours, while everything goes wrong.

`program` is the command line, `run` one run of it: it starts `member` after `member`, each a `process`, with a `wire`
from each to each. In these processes nodes `talk`, and note everything in a `ledger`; `verdict` and `ledger` say what
must not be, `result` and `chart` what came out.
"""
