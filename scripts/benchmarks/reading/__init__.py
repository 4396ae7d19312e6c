"""Benchmarks of reading and converting."""
