"""The soak (`command`) and its parts: what is said and noted, a node's process, the wires between them, the chart."""
