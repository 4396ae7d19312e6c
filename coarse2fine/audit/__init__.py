"""How much was missed: random samples of what was left out, and the bounds they give."""
