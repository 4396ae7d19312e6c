"""Specialists of a model: small nets for clusters of cells or groups of features."""
