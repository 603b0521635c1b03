"""A device that writes text: a decoder's session and caches, sampling, streaming, chats."""
