"""The two ends: who makes sessions and receives for them."""
