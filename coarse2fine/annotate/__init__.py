"""Annotating an image in the browser: draw, fit a model to it, accept or reject its finds."""
