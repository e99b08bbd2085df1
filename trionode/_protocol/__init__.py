"""The node protocol on the wire, sans-IO. `frames` is its specification."""
