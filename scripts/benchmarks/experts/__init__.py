"""Benchmark of experts: real models behind the scan, on scenes made here."""
