"""Start of a launch's process: ``python -P start_launch.py JOB``, run as a file.

The process imports from where its session does, not from the working folder, which
``python -m pytest`` would put first.
"""

import json
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[:] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["sys_path"]
    from bitbench.pytest_plugin.launch import main

    raise SystemExit(main(sys.argv[1]))
