"""Stands for the child process of `staging`: it tells nothing for a while, then one event."""

import time

time.sleep(1.5)
print('{"event": "late"}', flush=True)
