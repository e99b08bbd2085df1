"""Thousands of idle connections: what they cost, and whether anything grows faster than their number."""
