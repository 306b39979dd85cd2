"""Training by several processes: the group of ranks, how it comes together, and who watches that all are alive.

A rank is a process that trains: one a host, or one for each GPU of a host that has several. This folder moves numbers
between ranks. It knows neither events nor models.
"""
