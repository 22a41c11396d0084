"""The one exception for what the user can mend."""


class UserInputError(ValueError):
    """The user's input is wrong.

    The message is one line that says what is wrong and what to do instead. The commands print it to stderr without a
    traceback and exit with code 2.
    """
