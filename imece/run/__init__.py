"""A run in Redis."""
