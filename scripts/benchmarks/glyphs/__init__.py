"""Glyphs of many scripts: trees of forks against nets of equal cost."""
