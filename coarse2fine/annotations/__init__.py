"""Annotations of many programs, read into regions of an image in full-resolution pixels."""
