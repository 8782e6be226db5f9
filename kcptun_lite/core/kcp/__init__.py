"""KCP: the reliable stream over datagrams."""
