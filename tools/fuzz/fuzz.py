"""Coverage-guided fuzzing of everything that takes bytes from outside, with atheris (libFuzzer).

In      the name of a target of tests/fuzz/targets.py, then options of libFuzzer
Out     a growing corpus in build/fuzz/TARGET; a file crash-... there when a promise is broken
Knows   atheris. Not: the promises, they stand in tests/fuzz/targets.py

    pip install atheris
    python tools/fuzz/fuzz.py kcp -max_total_time=600
    python tools/fuzz/fuzz.py kcp build/fuzz/kcp/crash-...      one input again
"""

import sys
from pathlib import Path

import atheris

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

with atheris.instrument_imports(include=["kcptun_lite"]):
    from tests.fuzz.seeds import PROGRAM_MAX, seeds
    from tests.fuzz.targets import TARGETS


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: {sys.argv[0]} {'|'.join(TARGETS)} [options of libFuzzer]")
    name, *options = sys.argv[1:]
    corpus = ROOT / "build" / "fuzz" / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, program in enumerate(seeds()[name]):
        (corpus / f"seed-{number:02}").write_bytes(program)
    is_replay = any(Path(option).is_file() for option in options)
    where = [] if is_replay else [str(corpus), f"-max_len={PROGRAM_MAX}", f"-artifact_prefix={corpus}/"]
    atheris.Setup([sys.argv[0], *where, *options], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
