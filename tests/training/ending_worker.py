"""One of two processes that train together: ``COORDINATOR PROCESS_ID ENDS SILENCE``. Process 1 ends as ENDS says, and
process 0 waits for it; or it waits for process 0, which comes late. SILENCE is the time in seconds after which a
process is taken for dead."""

import os
import signal
import sys
import time

from flax_shufflenet.errors import TrainingError
from flax_shufflenet.system.interruption import Interrupted
from flax_shufflenet.training import processes
from flax_shufflenet.training.config import Config


def main() -> None:
    coordinator, number, ends, silence = sys.argv[1:]
    processes._LONGEST_SILENCE = int(silence)
    processes.join(Config(coordinator=coordinator, num_processes=2, process_id=int(number)))
    with processes.end_together():
        processes.highest(0)
        print("together", flush=True)
        if number == "1" and ends == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if number == "1" and ends == "interrupted":
            raise Interrupted(signal.SIGINT)
        if ends == "both":
            raise TrainingError(f"process {number} has its own message")
        if ends == "late":
            time.sleep(3 if number == "0" else 0)
            print(time.time())
            processes.wait_for_all()
            print(time.time())
            return
        processes.highest(0)


if __name__ == "__main__":
    main()
