"""Task weights: the balancers, each one pure function in a file, and the probe that they measure.

A balancer knows losses and weights only: no model, no dataset, no process.
"""
