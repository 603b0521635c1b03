"""Bases that sort sounds: encoders of speech. (docs/adr/0080)"""
