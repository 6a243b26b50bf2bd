"""The program of docs/own-encoder.md, as it stands there."""

import re
import subprocess
import sys
from pathlib import Path

import decipher_rt
from decipher_rt.cli.demo import DEMO_SERIES

PAGE = Path(__file__).parents[2] / "docs" / "own-encoder.md"


def test_the_program_of_the_page_gives_a_bundle_that_answers(tmp_path):
    program = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[1]
    subprocess.run([sys.executable, "-W", "error", "-c", program], cwd=tmp_path, check=True, timeout=300)
    result = decipher_rt.load(tmp_path / "my-bundle").infer(DEMO_SERIES)
    assert result.embedding.shape == (48,)
    assert result.heads["abnormal"].label in ("no", "yes")
