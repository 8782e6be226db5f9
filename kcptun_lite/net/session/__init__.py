"""One conversation on the network: its locks, streams and paths."""
