"""The steps of an analysis: scan, choose, refine, conclude."""
