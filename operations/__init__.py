"""Processes on real machines: keys, folders, supervisors, and what an operator sees of them."""
