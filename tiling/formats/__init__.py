"""Readers of image formats.

`registry` lists them. A format that is decoded whole is an entry of the tables in `raster_header` (its first bytes, its
header) and `raster` (its decoder), and a suffix in `registry`; any other is a module with a function that returns a
`Source`, and a `Format` in `registry`.
"""
