"""Benchmarks of specialists."""
