"""What each stage took, as Triton metrics: the fused step is one model to Triton."""

import threading
import time

import triton_python_backend_utils as pb_utils

EVERY_S = 1.0
MICROSECONDS = "marquee_stage_duration_us"
ROWS = "marquee_stage_rows"


class Meter:
    """Sums up in this process and tells Triton once a second: a metric's call costs a round trip.

    Args:
        ensemble, version: whose stages, of which bundle; labels of the metrics beside the stage.
    """

    def __init__(self, ensemble, version):
        self.ensemble, self.version = ensemble, version
        counter = pb_utils.MetricFamily.COUNTER
        # A family that is dropped takes its metrics along.
        self.families = [
            pb_utils.MetricFamily(name=name, description=description, kind=counter)
            for name, description in (
                (MICROSECONDS, "Microseconds that batches took in a stage of the fused step"),
                (ROWS, "Users that a stage of the fused step worked for"),
            )
        ]
        self.sums = {}  # stage -> [microseconds, rows] since they were told
        self.metrics = {}
        self.lock = threading.Lock()
        threading.Thread(target=self.tell_forever, daemon=True).start()

    def add(self, took_us, rows):
        """Count a batch of `rows` users; `took_us` by stage."""
        with self.lock:
            for stage, us in took_us.items():
                known = self.sums.setdefault(stage, [0, 0])
                known[0] += us
                known[1] += rows

    def tell_forever(self):
        while True:
            time.sleep(EVERY_S)
            with self.lock:
                sums, self.sums = self.sums, {}
            for stage, values in sums.items():
                for metric, value in zip(self.metrics_of(stage), values, strict=True):
                    metric.increment(value)

    def metrics_of(self, stage):
        if stage not in self.metrics:
            labels = {"ensemble": self.ensemble, "stage": stage, "version": self.version}
            self.metrics[stage] = [family.Metric(labels=labels) for family in self.families]
        return self.metrics[stage]
