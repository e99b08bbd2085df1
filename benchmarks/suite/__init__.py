"""The benchmark suite: trionode and its peers, measured in turns. Run by `python -m benchmarks`."""
