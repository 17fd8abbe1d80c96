"""The cost model of a plan: as equations, as arrays over many plans with lower bounds, and in whole numbers."""
