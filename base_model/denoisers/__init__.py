"""Bases that draw images: diffusion transformers on pixels. (docs/adr/0087)"""
