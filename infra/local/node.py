"""Run ``ray start`` on loopback only: ``python infra/local/node.py start --head ...``.

Ray replaces 127.0.0.1 by the outer address of the machine and then listens on every interface. With
its setting for desktops (``RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0``, see
:meth:`infra.local.Stack.settings`) it keeps 127.0.0.1, but refuses a second node. This script lifts
that refusal.
"""

from ray._private import ray_constants, services
from ray.scripts.scripts import main

if __name__ == "__main__":
    ray_constants.ENABLE_RAY_CLUSTER = True
    services.get_node_ip_address = lambda _address=None: "127.0.0.1"
    main()
