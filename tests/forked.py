"Another process without another interpreter: forked from the one that runs the tests, where everything is imported already"
import os, signal, sys, time, traceback
import pytest
import torch

needs_fork = pytest.mark.skipif(not hasattr(os, 'fork'), reason='this system cannot fork')

def die():
    "End this process as a power cut would: nothing is tidied up"
    os.kill(os.getpid(), signal.SIGKILL)

def wait_for(done, seconds=60):
    "Wait until another process has brought about that `done()`"
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, 'it never came about'
        time.sleep(.01)

class Forked:
    "A process that calls `run` and ends; `log` gets what it prints"
    def __init__(self, run, log):
        self.log = log
        self.pid = os.fork()
        if self.pid == 0: self._live(run)

    def _live(self, run):
        code = 1
        try:
            with open(self.log, 'w', buffering=1) as out:
                for number in (1, 2): os.dup2(out.fileno(), number)
                sys.stdout = sys.stderr = out
                torch.set_num_threads(1)   # those of the first process are not here
                try:
                    run()
                    code = 0
                except BaseException: traceback.print_exc(file=out)
        finally: os._exit(code)   # never back into pytest

    def end(self):
        "Wait until it ends; give its exit code, negative for a signal, and what it printed"
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status), self.log.read_text()
