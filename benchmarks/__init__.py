"""Speed and memory against published forms: ``python -m benchmarks``, then ``python -m benchmarks.report``."""
