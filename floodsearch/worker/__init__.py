"""A worker: one process that trains tickets on one device."""
