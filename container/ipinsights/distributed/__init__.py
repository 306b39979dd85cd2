"""Training on several hosts: the group of ranks, how it comes together, and who watches that all are alive.

A rank is a process that trains, one a host. This folder moves numbers between ranks. It knows neither events nor
models.
"""
