"""The closer look beside standard detectors that are trained on the same scenes for as long."""
