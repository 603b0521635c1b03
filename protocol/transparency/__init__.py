"""The transparency log's forms: tree proofs, signed notes, tiles. No I/O. (P-8)"""
