"""The auditor: verify a log and a run from published files alone.

Empty until the transparency log exists; the folder is here so that its layer is enforced
(no torch, no flwr, no server code) from the first line written into it.
"""
