"""What power loss and hostile neighbours may do to files and downloads, answered once for every role.

Files appear whole or not at all, locks end with their process, what strangers have filled is read within
bounds. Nothing here knows what is in a file. (docs/adr/0048)
"""
