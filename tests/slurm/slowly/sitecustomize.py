"""Python imports this before anything else: ranks then take their time, so that there is some in
which they can be interrupted."""

import os
import time

SECONDS_A_STEP = 0.2

if "RANK" in os.environ:
    from gradacc_dist.observe.observer import Observer

    report = Observer.train

    def report_and_rest(self, record):
        report(self, record)
        time.sleep(SECONDS_A_STEP)

    Observer.train = report_and_rest
