"""A second auditor, written from docs/protocol.md alone: standard library, numpy, cryptography, dp-accounting.

It shares no line with the packages of this repository, and asserts where it finds a fault. It verifies runs
under secure aggregation, with witnesses or without: both forms of keys, both ciphers, every width of ring, groups,
noise, prompts and cores, every server optimiser, losses and attempts that failed, releases. `run.verify_run`
is where to begin.
"""
