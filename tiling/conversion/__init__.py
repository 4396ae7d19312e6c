"""Conversion to OME-Zarr, which can be interrupted."""
