"""Several processes for one server: the parent that holds its ports, and what is special in each of them."""
