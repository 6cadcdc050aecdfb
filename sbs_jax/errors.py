"""The one kind of error that a user may cause, and the exit code of work that is not done."""

UNFINISHED = 75
"""Exit code of a program that ended in order before its work was done: a signal or a budget stopped
it, or answers are missing. What is done is saved, and the same command goes on. (EX_TEMPFAIL of
sysexits.h: try again.)"""


class UserError(Exception):
    """A mistake of the user's, described in one sentence.

    The message names the file, the line or the key, and says what to do. The mains print it as
    ``error: <message>`` on stderr and exit with code 1; they never show a traceback for it.
    """
