"""Two kinds of failure: one that the user can correct, and one that we must correct."""


class UserError(Exception):
    """The input is wrong: a hyperparameter, a file, a request. The text says what is wrong, where, and what to do."""


class AlgorithmError(Exception):
    """The program is wrong. The text says what it was doing; the cause is chained."""
