"""Errors that the user can correct: one line that says what is wrong, where, and how to correct it; exit code 2."""


class UserError(ValueError):
    """The user's input cannot be used. The user sees the message, which has one line."""


class AudioFault(UserError):
    """A clip that cannot be used.

    `reason` is a short name; skipped clips are counted by it. `detail` describes the fault.
    """

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self):  # for pickling: DataLoader workers send it to the main process
        return AudioFault, (self.reason, self.detail)
