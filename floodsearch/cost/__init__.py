"""What a search will take: its stages, and how fast a device is."""
