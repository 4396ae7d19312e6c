"""Benchmarks of folders of images."""
