"""The plan lowered to one ordered list of actions per worker, and the simulation of those lists."""
