"""Benchmarks: each module is run with `python -m`, prints a table and ends with one JSON line."""
