"""Readers of what others made: published result files."""
