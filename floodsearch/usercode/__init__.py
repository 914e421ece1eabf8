"""Code of the user's own: found by its name, run as a command, and in which revision."""
