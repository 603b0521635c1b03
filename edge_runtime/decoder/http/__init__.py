"""``fedge edge serve-text``: texts and chats over HTTP, in the wire format of OpenAI's."""
