"""From a released adapter to devices: the gate, signed evidence, and a TUF repository. (P-9)"""
