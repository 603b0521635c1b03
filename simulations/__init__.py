"""Populations, partitions, faults, the in-process grid, experiments, reports."""
