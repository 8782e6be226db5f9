"""The two programs: options in, lifetimes owned."""
