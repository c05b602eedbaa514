"""Pure functions on tensors. They stand on torch alone, know no module, and everything else stands on them."""
