"""How each program names the tensors of a network, and the exact way between those names and ours."""
