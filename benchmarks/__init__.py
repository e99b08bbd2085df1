"""The benchmark suite (`suite`) and the stress programs (`stress`), from a checkout. See README.md beside this file."""
