"""Chats: messages that are checked, and what a base's own template makes of them. (docs/adr/0057)

Sites encode rows by it and devices prompts, so that both read the same tokens.
"""
