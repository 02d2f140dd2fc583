"""What producer and worker agree on: settings, the run in Redis, the queue and its jobs.

Imports neither producer nor worker.
"""
