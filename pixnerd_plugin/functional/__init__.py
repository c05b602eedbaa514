"""Pure functions on tensors. They need torch alone, and everything else builds on them."""
