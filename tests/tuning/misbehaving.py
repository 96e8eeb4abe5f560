"""A child process that does as it is told: answers, dies, hangs, takes memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path


def main() -> None:
    for line in sys.stdin:
        task = json.loads(line)
        what = task["task"]
        if what == "abort":
            os.abort()
        elif what == "exit":
            print("the last words", file=sys.stderr, flush=True)
            os._exit(3)
        elif what == "kill":
            os.kill(os.getpid(), 9)
        elif what == "hang":
            helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            Path(task["file"]).write_text(str(helper.pid))
            time.sleep(600)
        elif what == "eat":
            kept = []
            while True:
                kept.append(bytearray(os.urandom(1 << 20)) * 8)
        print(json.dumps(task.get("answer", {})), flush=True)


if __name__ == "__main__":
    main()
