"""The ways in which a study may end without its front. The command line shows the message of each, one line."""

from spaces import BadInput


class AllFailed(RuntimeError):
    """Every trial of the study failed; the message has the reasons, grouped."""


class ExportRefused(RuntimeError):
    """The student's files or the exported file differ from what was measured, or cannot be written; no file was."""


class LedgerGone(BadInput):
    """The study's ledger is not where it was; the message says how to rebuild it."""


class RecordGone(BadInput):
    """The study's record of its teacher is gone; the message says how to restore it."""


class LedgerLost(ConnectionError):
    """The connection to the ledger's database was lost during the study; the message says how to continue."""


class Interrupted(RuntimeError):
    """The study was told to stop before it was finished; the message says how to continue."""


class NotStarted(Interrupted):
    """Ray, which runs the trials, does not start on this machine; the message says why."""
