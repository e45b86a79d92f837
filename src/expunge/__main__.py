"""``python -m expunge``: the command line, as ``accelerate launch -m expunge`` starts it."""

from __future__ import annotations

import contextlib
import io
import os
import warnings

from expunge.cli.main import main

if __name__ == "__main__":
    with contextlib.ExitStack() as stack:
        if os.environ.get("RANK", "0") != "0":  # the main process speaks for all
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            warnings.simplefilter("ignore")
        main()
