"""An operator's acceptance test: an engine computes the same with blocks from the daemon as without them."""
