"""Rounds whose nodes are elsewhere: Flower carries the messages, everything else is as in one process.

Begin with `rounds`, which runs a round with whoever answers. `messages` checks what is received, `job` says
what server and nodes must agree on, `node` does a node's work. `flower` is the only module that imports
`flwr` (extra `flower`), and `folder` writes a complete app folder.

Flower and Ray read the variables below when they are imported, which is after this module. With them they
report nothing to anybody, look for no updates and install nothing, unless the user has decided otherwise.
"""

import os

QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}

for _name, _value in QUIET.items():
    os.environ.setdefault(_name, _value)
