"""The list of log-ins to look at: worst first, each with its reason."""
