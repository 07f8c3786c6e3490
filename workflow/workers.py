"""Which processes train together, and which of them this one is: TensorFlow's variable TF_CONFIG.

TF_CONFIG='{"cluster": {"worker": ["host-a:2222", "host-b:2222"]},
            "task": {"type": "worker", "index": 0}}'
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from workflow.errors import ConfigError

VARIABLE = "TF_CONFIG"


@dataclass(frozen=True)
class Workers:
    """The processes of one training.

    Attributes:
        addresses: host:port of each of them; the first one keeps what is learned.
        index: which of them this process is.
    """

    addresses: tuple[str, ...]
    index: int

    @property
    def is_first(self) -> bool:
        return self.index == 0


def read_workers(environment: Mapping[str, str]) -> Workers | None:
    """What TF_CONFIG says; None where it is not set or names one process only.

    Raises:
        ConfigError: it is not understood, or has roles other than worker.
    """
    text = environment.get(VARIABLE, "")
    if not text:
        return None
    try:
        value = json.loads(text)
        cluster, task = value["cluster"], value["task"]
        workers = Workers(tuple(map(str, cluster["worker"])), int(task["index"]))
        if set(cluster) != {"worker"} or task["type"] != "worker":
            raise ValueError(f"roles {', '.join(sorted({*cluster, task['type']}))}")
        if not 0 <= workers.index < len(workers.addresses):
            raise ValueError(f"worker {workers.index} of {len(workers.addresses)}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{VARIABLE} is not understood",
            expected='{"cluster": {"worker": ["host:port", ...]},'
            ' "task": {"type": "worker", "index": 0}}',
            found=f"no {error}" if isinstance(error, KeyError) else str(error),
        ) from None
    return workers if len(workers.addresses) > 1 else None
