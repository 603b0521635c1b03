"""GGUF files, the format of llama.cpp, read into the source of a decoder."""
