"""The programs that `tests/test_faults.py` starts: faults on an engine, and a count of what they leave.

    test_faults --launch--> program ENGINE FAULT ... --Runner--> workers: run items
         ^                     |  census before and after
         +---- a line of JSON <+  for each fault

A program has a session, a temporary folder and, where the system lets it, a /dev/shm of its own. It only says
what happened; the test judges.
"""
