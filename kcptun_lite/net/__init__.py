"""Sockets, threads, locks and the clock: the only floor that has them."""
