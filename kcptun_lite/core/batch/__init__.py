"""Many packets as one: buffers, and packets side by side in them."""
