"""How models are fitted: both nets, their lessons, geometry and thresholds."""
