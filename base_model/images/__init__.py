"""Bases that sort images: vision transformers. (docs/adr/0073)"""
