"""Benchmark of a worker that runs for long."""
