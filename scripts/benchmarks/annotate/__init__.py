"""A simulated annotator: how good a model is for the clicks that its annotations take."""
