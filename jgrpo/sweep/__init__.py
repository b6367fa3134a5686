"""Sweeps: a file of settings that vary, the runs it makes, and how they compare."""
