"""lora-assay. Refuses Windows at once: records rest on file locks, and stopping on signals, that it lacks."""

import sys

if sys.platform == "win32":
    print("error: lora-assay runs on Linux; on Windows it runs inside WSL (wsl --install)", file=sys.stderr)
    raise SystemExit(2)
