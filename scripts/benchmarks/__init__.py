"""Benchmarks that developers run."""
