"""The parts of benchmarks/soak.py: what is said and noted, a node's process, the wires between them, the chart."""
