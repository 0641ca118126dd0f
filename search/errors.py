"""How a study may end otherwise than with its front. Of all these the command line shows the message, a line."""

from spaces import BadInput


class AllFailed(RuntimeError):
    """Every trial of the study failed; the message has the reasons, grouped."""


class ExportRefused(RuntimeError):
    """The student's files, or the exported one, are not what was measured, or cannot be written; nothing was."""


class LedgerGone(BadInput):
    """The study's ledger is not where it was; the message says how to rebuild it."""


class RecordGone(BadInput):
    """What the study knows of its teacher is not there any more; the message says how to have it again."""


class LedgerLost(ConnectionError):
    """The ledger's database went away in mid-study; the message says how to go on."""


class Interrupted(RuntimeError):
    """The study was told to stop before it was finished; the message says how to go on."""


class NotStarted(Interrupted):
    """Ray, which carries trials out, does not start on this machine; the message says why."""
