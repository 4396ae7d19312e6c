"""Pixel layer: opens, reads, tiles, converts and writes gigapixel images, a part at a time."""
