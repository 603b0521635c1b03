"""Every decoder of what others have written, with documents that it accepts: a table a house.

``registry`` is filled from one small run, made for real. ``ELSEWHERE`` names readers that have no
document of a stranger's of their own, and says why.
"""
