"""The demo: a gigapixel scene of handwritten digits."""
