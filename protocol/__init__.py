"""What two independent implementations must agree on, byte for byte.

The plan, adapters as flat vectors, quantised codes, the contracts of aggregation rules, the
exchange of updates. numpy + cryptography + pydantic; no files, no clock, no global randomness:
those are arguments. What only one side needs to know does not belong here.
"""

PROTOCOL_VERSION = 4
