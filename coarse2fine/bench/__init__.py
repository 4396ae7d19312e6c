"""Benchmark on annotated scenes: cost and recall of the engine, compared with baselines."""
