"""Pruning: driver, masks, schedules, allocation, criteria, and one file per method."""
