"""What the adapters to engines share: identity of blocks, proofs, counters. The client core knows nothing of it."""
