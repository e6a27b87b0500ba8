"""Sparse weights made fast on a CPU: kernels, layers and an inference engine."""
