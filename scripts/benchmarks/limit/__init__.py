"""Distance of an analysis from the limit that its nets and its decoder set."""
