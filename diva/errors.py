"""The errors that are the user's to mend: one line that says what, where and how; exit code 2."""


class UserError(ValueError):
    """What the user gave cannot be used. The message is the one line that the user sees."""


class AudioFault(UserError):
    """A clip that cannot be heard.

    `reason` is the short name under which skipped clips are counted, `detail` says what was found.
    """

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self):  # crosses process borders in DataLoader workers
        return AudioFault, (self.reason, self.detail)
