"""
Trains the embedded text tokenizer: byte-level BPE on the stories and the talk of the corpus.

    python -m tiny.build.train_tokenizer --out=tiny/tokenizer     about ten seconds

tokenizer.json has exactly the layout of Qwen2.5's (its splitting pattern, NFC, one added token
<|endoftext|> at the end). The embedded default therefore takes the same code path as the papers'
models: tiktoken computes the ids, and transformers' Qwen2 classes can read the folder. Ids 0..255
are the bytes; the merges follow in order. The same settings give the same file.
"""
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from configurator import run
from files import atomically, record, write_json
from hub.tokenizer import QWEN2_SPLIT, TextTokenizer

EOT = '<|endoftext|>'

@dataclass(frozen=True)
class Config:
    out: str = 'tiny/tokenizer' # folder of tokenizer.json and tokenizer_config.json
    n_ids: int = 2048           # 256 bytes, merges, <|endoftext|>
    documents: int = 40000      # stories to train on, and as many utterances of the talk
    seed: int = 1               # of the grammars

def corpus(documents, seed):
    """Yields the texts of the training stories, then those of the talk."""
    from tiny.stories import stories
    from tiny.talk import utterances
    yield from (story.text for story in stories('train', documents, seed))
    yield from (utterance.text for utterance in utterances(documents, seed))

def train(texts, n_ids):
    """A tokenizers.Tokenizer with n_ids ids, or fewer if the texts run out of pairs to merge."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = pre_tokenizers.Split(Regex(QWEN2_SPLIT), 'isolated')
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=n_ids - 1, min_frequency=2, show_progress=False, initial_alphabet=byte_level.alphabet())
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([EOT])
    return tokenizer

def main(cfg):
    texts = list(corpus(cfg.documents, cfg.seed))
    tokenizer = train(texts, cfg.n_ids)
    out = Path(cfg.out)
    with atomically(out / 'tokenizer.json') as tmp:
        tmp.write_text(tokenizer.to_str() + '\n', encoding='utf-8')
    write_json(out / 'tokenizer_config.json', {
        'tokenizer_class': 'PreTrainedTokenizerFast',
        'eos_token': EOT,
        'pad_token': EOT,
        'clean_up_tokenization_spaces': False})
    write_json(out / 'record.json', record(cfg))
    tokenizer = TextTokenizer(out)
    for name, part in (('stories', texts[:cfg.documents]), ('talk', texts[cfg.documents:])):
        words = sum(len(text.split()) for text in part)
        tokens = sum(map(len, tokenizer.encode_batch(part)))
        print(f"{name}: {len(part):,} documents, {words:,} words, "
              f"{tokens / words:.3f} tokens a word, its marks included")
    print(f"{cfg.out}: {tokenizer.size} ids, hash {tokenizer.hash}")

if __name__ == '__main__':
    run(main, Config)
