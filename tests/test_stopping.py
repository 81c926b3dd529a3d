"""SIGTERM is taken note of, and means what it did once the block has ended."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor

from safe_rlhf_video.training.stopping import StopSignal


def test_a_signal_is_noted_while_the_block_runs() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopSignal() as stop:
        assert not stop.is_there
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.is_there
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_thread_changes_no_handler() -> None:
    def run() -> object:
        with StopSignal() as stop:
            return stop.is_there, signal.getsignal(signal.SIGTERM)

    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(run).result() == (False, signal.getsignal(signal.SIGTERM))
