"""Blends: several adapters of one base, by weights, as one that was trained by nobody. (docs/adr/0067)"""
