"""Benchmarks: what the engine saves, what it misses, and how fast it reads, beside its rivals."""
