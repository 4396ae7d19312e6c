"""Conversion to OME-Zarr, resumable after an interruption."""
