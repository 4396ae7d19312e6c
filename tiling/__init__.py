"""Pixels, files and boxes: reading gigapixel images piece by piece, and writing them."""
