"""Child processes that do not outlive their parent."""

import multiprocessing
import os
import threading

__all__ = ["end_with_parent"]


def end_with_parent() -> None:
    """Exit from now on as soon as the parent process is gone, even by SIGKILL.

    Otherwise this process would wait for its next job forever, or write to files of the parent's successor.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:

        def watch() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()
