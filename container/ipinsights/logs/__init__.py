"""From logs to log-ins: one small reader a format, and what they share.

A reader turns each row of a log, a line or a record, into what it is (`rows.Outcome`): a log-in, a row that is dropped
with a reason, a malformed one, or something else. `preparation.prepare` finds the format of each file, counts the rows
and writes the log-ins, split by time.
"""
