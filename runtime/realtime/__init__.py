"""A run as it happens: volumes from the scanner in, motion and trials estimated, answers out."""
