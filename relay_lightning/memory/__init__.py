"""Memory planned before it is spent, from a configuration alone."""
