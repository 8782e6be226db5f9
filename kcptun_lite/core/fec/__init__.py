"""Forward error correction: Reed-Solomon parity among the packets."""
