"""Code of the user's own: imported by its name, run as a command, and its revision."""
