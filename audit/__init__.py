"""The auditor: verify a log and a run from published files alone. (P-8)"""
