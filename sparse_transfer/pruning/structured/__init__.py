"""Structured pruning: channels that depend on each other are removed together, physically."""
