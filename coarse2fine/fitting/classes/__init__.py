"""Fitting of the classifier of finds: a net that names each find, and forks of it for kinds of finds."""
