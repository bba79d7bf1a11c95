"""``python -m src.embedded``, the command that model cards name: prints the folder of the embedded model's weights."""

from __future__ import annotations

from .model.embedded import main

if __name__ == "__main__":
    main()
