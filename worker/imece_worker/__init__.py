"""The worker: takes bucket jobs, processes their files, records checkpoints.

Imports imece, never producer.
"""
