"""The protocol: bytes and `now` in, bytes and events out. No sockets, threads, clock or randomness."""
