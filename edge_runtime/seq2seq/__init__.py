"""How a device turns a text into another: it is read once, under one adapter, and then written."""
