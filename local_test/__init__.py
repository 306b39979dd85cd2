"""Ways to try the algorithm on this machine, without AWS."""
