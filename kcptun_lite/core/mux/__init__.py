"""Streams in one session: smux frames and snappy chunks."""
