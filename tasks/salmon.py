"""
SALMon (Maimon et al. 2024, arXiv 2409.07437): does the model prefer speech whose acoustics are consistent?

    ROOT/PART/sample_N_0.wav    the right one
    ROOT/PART/sample_N_1.wav    the same with a speaker, gender, room, background or sentiment that does not fit

All eight parts must be there. Each part's score is a row of its own, and there is no mean over parts.
"""
import re
from pathlib import Path

from configurator import Refused
from files import visible
from tasks.storycloze import check_files

PARTS = ('bg_alignment', 'bg_all_consistency', 'bg_domain_consistency', 'gender_consistency', 'rir_consistency',
         'sentiment_alignment', 'sentiment_consistency', 'speaker_consistency')

def items(root):
    """Items of all parts, by part and number."""
    root = Path(root)
    if missing := [part for part in PARTS if not (root / part).is_dir()]:
        raise Refused(f"{root}: lacks {', '.join(missing)}; expected SALMon's eight folders of sample_N_0.wav, ...")
    for part in PARTS:
        matches = [re.fullmatch(r'sample_(\d+)_[01]\.wav', path.name) for path in visible(root / part, '*.wav')]
        numbers = sorted({match[1] for match in matches if match}, key=int)
        names = {f'sample_{n}_{i}.wav' for n in numbers for i in (0, 1)}
        check_files(root / part, names, "its pairs sample_N_0, sample_N_1")
        if not numbers:
            raise Refused(f"{root / part}: no sample_N_0.wav in it")
        for n in numbers:
            right = {'joined': root / part / f'sample_{n}_0.wav'}
            wrong = {'joined': root / part / f'sample_{n}_1.wav'}
            yield {'id': f'{part}/{n}', 'rows': (part,), 'right': right, 'wrong': wrong}
