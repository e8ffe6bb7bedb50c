"""The commands of docs/evidence.md give the numbers of that page, out of the records beside it."""

import re
import runpy
import sys

import pytest
from docs.pages import blocks, commands

from mmorepa.lab.comparison import study
from support import ROOT

PAGE = ROOT / 'docs' / 'evidence.md'
#: A mean over seeds, the mAP of a single one, and the mean of the differences with its interval.
RESULT = re.compile(
    r'\d+\.\d+ \(\d+\.\d+ to \d+\.\d+\) ± \d+\.\d+'
    r'|\d\.\d{4} \(\d\.\d{4} to \d\.\d{4}\)'
    r'|\d\d\.\d\d \(\d\d\.\d\d to \d\d\.\d\d\)'
    r'|[+-]\d+\.\d+ to [+-]\d+\.\d+'
)

DONE = [
    command
    for block in blocks(PAGE)
    if block.language == 'bash'
    and block.line < PAGE.read_text(encoding='utf-8').split('## Not run yet')[0].count('\n')
    for command in commands(block)
    if '--records' in command.words
]


def test_there_are_some():
    assert len(DONE) >= 4


@pytest.mark.parametrize('command', DONE, ids=lambda c: c.words[c.words.index('--records') + 1])
def test_gives_the_numbers_of_the_page(command, tmp_path, monkeypatch, capsys):
    def train(job, report):
        pytest.fail(f'{job.name}, seed {job.seed}: no record of it, or one of other settings')

    monkeypatch.setattr(study, 'run_in_process', train)
    monkeypatch.chdir(ROOT)
    words = list(command.words[1:])
    words[words.index('--out') + 1] = str(tmp_path)
    monkeypatch.setattr(sys, 'argv', words)
    with pytest.raises(SystemExit) as end:
        runpy.run_path(words[0], run_name='__main__')
    output = capsys.readouterr()
    assert end.value.code in (0, None), output.err
    page = PAGE.read_text(encoding='utf-8')
    results = RESULT.findall(output.out)
    assert results
    assert not [result for result in results if result not in page]
