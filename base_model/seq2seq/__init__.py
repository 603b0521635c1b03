"""Bases that turn a text into another: an encoder reads the one, a decoder writes the other."""
