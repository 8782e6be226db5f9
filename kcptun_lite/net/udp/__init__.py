"""The UDP sockets."""
