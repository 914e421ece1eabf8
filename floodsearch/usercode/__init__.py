"""Code of the user's own: imported by its name, its arguments, run as a command, and its revision."""
