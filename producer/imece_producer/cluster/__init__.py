"""The cluster: how to reach it, what it says, its scaling."""
