"""Bases that draw images, on a device. (P-1.18)"""
