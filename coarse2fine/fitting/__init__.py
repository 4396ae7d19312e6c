"""Fitting of models: training of both nets, geometry and thresholds."""
