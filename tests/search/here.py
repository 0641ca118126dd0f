"""The `dux` command, with one thing otherwise: studies carry out their trials in the command's process, without Ray.

`python tests/search/here.py search study.yaml` and so on; for tests of what is no matter of Ray's.
"""

import dux
from search.study import Study

if __name__ == "__main__":
    for begin in (Study.search, Study.resume):
        begin.__kwdefaults__["backend"] = "local"
    dux.main()
