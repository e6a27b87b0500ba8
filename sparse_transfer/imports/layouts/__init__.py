"""Layouts of other projects' checkpoints: file name = layout name, symbol `LAYOUT`."""
