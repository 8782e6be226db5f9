"""TCP connections and the relays that serve streams with them."""
