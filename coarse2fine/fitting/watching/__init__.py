"""Fitting by watching an expert: the scan learns where it finds something, from its answers on some tiles."""
