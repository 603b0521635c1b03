"""Secure aggregation: the coordinator learns a sum and no summand. (P-6)

Bell et al. 2020 (SecAgg+, ePrint 2020/704), single server, in its active-secure form: signed
adverts, an alive set that clients agree on by signatures. Sans-I/O: messages in, messages out;
randomness is an argument, states are types, nothing here reads a clock or a file.
"""
