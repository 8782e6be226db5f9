"""Datagrams as TCP segments (--tcp)."""
