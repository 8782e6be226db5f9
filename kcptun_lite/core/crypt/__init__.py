"""Encryption of packets, and of streams (QPP)."""
