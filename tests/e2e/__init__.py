"""What only a real cluster with KEDA can show. README.md says how to run it."""
