"""A run on this machine, with a server of its own."""
