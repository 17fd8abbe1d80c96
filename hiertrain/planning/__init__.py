"""Ways to a plan: the optimal one, the paper's own, and those that they are compared with."""
