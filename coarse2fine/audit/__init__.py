"""Audits of recall: random samples of skipped cells, and the bounds on missed finds that they give."""
