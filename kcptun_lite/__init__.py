"""kcptun_lite: the kcptun tunnel (TCP over smux, snappy, KCP, FEC and UDP) in Python."""

__version__ = "0.1.0"
