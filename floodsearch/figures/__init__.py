"""Records as drawings: pure, and with matplotlib, which is an extra."""
