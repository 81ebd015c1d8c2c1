"""
Copies a trained model for others to use: to a new folder, its weights in bfloat16, which halves it, or to a GGUF
file for llama.cpp (training/gguf.py).
Settings and log are copied as they are; vocabulary and tokenizer are written anew, so that a folder of an earlier
version, or one that slamkit published, gets files that transformers reads as we do. README.md is a model card
(training/card.py) to complete before one publishes the folder.

    python -m training.export --model=out/tiny-long --out=tiny/slm
    python -m training.export --model=out/tiny-long --gguf=out/tiny.gguf
"""
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from configurator import Refused, run
from files import atomically
from hub.folders import vocabulary
from model import GPT
from training import checkpoint
from training.card import model_card
from training.gguf import TYPES, import_gguf, write_gguf

COPIED = ('settings.json', 'log.jsonl')

@dataclass(frozen=True)
class Config:
    model: str = '' # a folder that train.py or dpo.py wrote, a step-N in it, or a hub id
    out: str = '' # the new folder, '': none
    gguf: str = '' # the new GGUF file, '': none; it needs the package gguf
    dtype: str = 'bfloat16' # of the weights: 'bfloat16', 'float16', 'float32'; a GGUF file has 'q8_0' (8 bits) too

    def __post_init__(self):
        if not self.model or not (self.out or self.gguf):
            raise Refused("expected --model=FOLDER and --out=NEW_FOLDER or --gguf=NEW_FILE")
        if self.dtype not in TYPES:
            raise Refused(f"dtype={self.dtype}: expected one of {', '.join(TYPES)}")
        if self.out and self.dtype == 'q8_0':
            raise Refused("dtype=q8_0: a folder has bfloat16, float16 or float32; export the two apart")

def export_folder(cfg, model, vocab, tokenizer):
    with atomically(cfg.out) as tmp:
        tmp.mkdir()
        for name in COPIED:
            if (Path(cfg.model) / name).is_file():
                shutil.copy(Path(cfg.model) / name, tmp)
        model.save_pretrained(tmp, vocab, tokenizer and tokenizer.name, getattr(torch, cfg.dtype))
        card = model_card(cfg.model, Path(cfg.out).name, model, vocab, cfg.dtype)
        (tmp / 'README.md').write_text(card, encoding='utf-8', errors='backslashreplace')

def load_model(folder):
    """The model of a folder, hub id or checkpoint (step-N)."""
    if not checkpoint.is_checkpoint(folder):
        return GPT.from_pretrained(folder)
    if why := checkpoint.why_unusable(Path(folder)):
        raise Refused(f"{folder}: {why}")
    return checkpoint.read_model(folder)

def main(cfg):
    for setting in ('out', 'gguf'):
        path = getattr(cfg, setting)
        if path and os.path.exists(path):
            raise Refused(f"{path}: exists already; choose another --{setting}, or delete it")
    if cfg.gguf:
        import_gguf()
    vocab, tokenizer = vocabulary(cfg.model)
    model = load_model(cfg.model)
    if cfg.gguf:
        write_gguf(cfg.gguf, model, vocab, tokenizer, Path(cfg.gguf).stem, cfg.dtype)
        print(f"{cfg.gguf}: {model.num_params():,} parameters in {cfg.dtype}, for llama.cpp")
    if cfg.out:
        export_folder(cfg, model, vocab, tokenizer)
        print(f"{cfg.out}: {model.num_params():,} parameters in {cfg.dtype}; complete its README.md, "
              f"evaluate it with eval.py --model={cfg.out}")

if __name__ == '__main__':
    run(main, Config)
