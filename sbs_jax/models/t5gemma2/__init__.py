"""T5Gemma 2: an encoder and a decoder of Gemma 3's layers."""
