"""Two kinds of failure: those the user can mend and those we must."""


class UserError(Exception):
    """The input is at fault: a hyperparameter, a file, a request. The text names what, where and what to do."""


class AlgorithmError(Exception):
    """The program is at fault. The text says what was being done; the cause is chained."""
