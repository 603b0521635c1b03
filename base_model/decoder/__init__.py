"""Bases that write text, at the publisher: read, quantise, build the graph. (docs/adr/0052)"""
