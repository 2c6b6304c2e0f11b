"""The import of torch, which is a quarter of the time of a merge of 2 GB."""

import gc
import importlib
import sys


def import_torch() -> None:
    """Import torch while no garbage is looked for, and take what it has made for what stays.

    An import makes hundreds of thousands of objects and hardly any garbage: looking through them again and again, and
    once more at the end of the process, takes a quarter of its time.
    """
    if "torch" in sys.modules:
        return
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        importlib.import_module("torch")
        gc.freeze()
    finally:
        if was_enabled:
            gc.enable()
