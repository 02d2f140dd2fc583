"""The producer: lists files, groups them into bucket jobs, enqueues them; and the command line.

Imports imece, never worker.
"""
