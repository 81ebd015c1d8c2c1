"""
Copies a trained model to a new folder for others to use, its weights in bfloat16, which halves it.
Settings and log are copied as they are; vocabulary and tokenizer are written anew, so that a folder of an earlier
version, or one that slamkit published, gets files that transformers reads as we do.

    python -m training.export --model=out/tiny-long --out=tiny/slm
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

COPIED = ('settings.json', 'log.jsonl')

@dataclass(frozen=True)
class Config:
    model: str = '' # a folder that train.py or dpo.py wrote
    out: str = '' # the new folder

    def __post_init__(self):
        if not self.model or not self.out:
            raise Refused("expected --model=FOLDER and --out=NEW_FOLDER")

def main(cfg):
    if os.path.exists(cfg.out):
        raise Refused(f"{cfg.out}: exists already; choose another --out, or delete it")
    vocab, tokenizer = vocabulary(cfg.model)
    model = GPT.from_pretrained(cfg.model)
    with atomically(cfg.out) as tmp:
        tmp.mkdir()
        for name in COPIED:
            if (Path(cfg.model) / name).is_file():
                shutil.copy(Path(cfg.model) / name, tmp)
        model.save_pretrained(tmp, vocab, tokenizer and tokenizer.name, torch.bfloat16)
    print(f"{cfg.out}: {model.num_params():,} parameters in bfloat16; "
          f"evaluate it with eval.py --model={cfg.out}")

if __name__ == '__main__':
    run(main, Config)
