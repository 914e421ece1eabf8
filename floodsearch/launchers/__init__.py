"""Where workers run: each place one file."""
