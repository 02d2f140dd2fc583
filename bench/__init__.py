"""The benchmarks: what imece must reach, each measured beside its alternative.

`python -m bench` runs all of them, `python -m bench enqueue` one;
see docs/explanation/benchmarks.md.
"""
