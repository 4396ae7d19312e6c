"""Results of an analysis, with their cost: values, files and pictures."""
