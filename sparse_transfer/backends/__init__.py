"""Ways to execute a model for a latency measurement; one file per backend."""
