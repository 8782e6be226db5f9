"""Man pages and completions are those of the parsers as they are; bash has the latter at its end."""

import subprocess
from pathlib import Path

import pytest

from tools import write_cli_files

FILES = sorted(
    path.relative_to(write_cli_files.PACKAGING)
    for folder in ("man", "completions")
    for path in (write_cli_files.PACKAGING / folder).iterdir()
)


def test_the_files_are_up_to_date(tmp_path: Path) -> None:
    write_cli_files.write(tmp_path)
    written = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert written == FILES
    for path in FILES:
        stored, fresh = (root / path for root in (write_cli_files.PACKAGING, tmp_path))
        assert stored.read_text() == fresh.read_text(), "run python tools/write_cli_files.py"


@pytest.mark.parametrize("program", ["client", "server"])
def test_bash_completes_options_words_and_files(program: str, tmp_path: Path) -> None:
    script = write_cli_files.PACKAGING / "completions" / f"kcptun-lite-{program}.bash"
    function = f"_shtab_kcptun_lite_{program}"

    def complete(*words: str) -> list[str]:
        line = f'cd {tmp_path}; . {script}; COMP_WORDS=(kcptun-lite-{program} {" ".join(words)} "$1"); '
        line += f'COMP_CWORD={len(words) + 1}; {function} x "$1"; printf "%s\\n" "${{COMPREPLY[@]}}"'
        done = subprocess.run(["bash", "-c", line, "bash", complete_this], capture_output=True, text=True, timeout=60)
        return done.stdout.split()

    complete_this = "--test"
    assert complete() == ["--test-config"]
    complete_this = "fast"
    assert complete("--mode") == ["fast3", "fast2", "fast"]
    (tmp_path / "home.json").touch()
    complete_this = "ho"
    assert complete("-c") == ["home.json"]
