"""Names and files, beneath a directory."""
