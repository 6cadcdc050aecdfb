"""Decoder-only language models: the network that the local teacher and decoder students share."""
