"""All checks and measurements that need a GPU, in ten minutes: a table, and the same as JSON.

    make gpu                                    # or: cd benchmarks && python -m gpu
    make gpu ARGS="--only losses steps"

Each section runs in its own process with a time limit, so that one that fails, hangs or runs out of memory doesn't end the
others. Without a GPU it runs the parts for a CPU and names those it skips; --small tries every section on any device. The exit
code is 1 if a check has failed.
"""
import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from gpu.sections import SECTIONS

HERE = Path(__file__).resolve().parent
OUTPUT = HERE.parents[1] / 'output' / 'gpu'


def parse_arguments(argv):
    parser = argparse.ArgumentParser(prog='gpu', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', choices=('auto', 'cuda', 'cpu'), default='auto', help='device (default: auto)')
    parser.add_argument('--only', nargs='+', choices=[section.name for section in SECTIONS], help='run only these sections')
    parser.add_argument('--small', action='store_true', help='small sizes, to try the sections rather than measure')
    parser.add_argument('--minutes', type=float, default=10, help='time for all sections together (default: 10)')
    parser.add_argument('--output', type=Path, default=OUTPUT, help=f'folder for results.json and table.md (default: {OUTPUT})')
    return parser.parse_args(argv)


def run_section(section, flags, seconds):
    """The rows of a section, within a number of seconds."""
    rows, begun = [], time.monotonic()
    with tempfile.TemporaryFile('w+') as errors:
        process = subprocess.Popen([sys.executable, '-m', 'gpu.section', section.name, *flags], cwd=HERE.parent, text=True,
                                   stdout=subprocess.PIPE, stderr=errors, start_new_session=True)
        reader = threading.Thread(target=_read, args=(process.stdout, section, rows), daemon=True)
        reader.start()
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            rows.append(_shown({'section': section.name, 'what': section.what, 'ok': False,
                                'detail': f'cut off after {seconds:.0f} s'}))
        finally:
            cut = process.poll() is None
            _end(process)
            reader.join(10)
        if process.returncode and not cut:
            errors.seek(0)
            lines = errors.read().splitlines() or ['']
            rows.append(_shown({'section': section.name, 'what': section.what, 'ok': False, 'detail': lines[-1],
                                'stderr': lines[-40:]}))
    return rows, time.monotonic() - begun


def _read(stream, section, rows):
    for line in stream:
        if line.startswith('{'):
            rows.append(_shown({'section': section.name, **json.loads(line)}))


def _end(process):
    """End a section's process and all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _shown(row):
    print(line(row), flush=True)
    return row


def line(row):
    return '| ' + ' | '.join(cells(row)) + ' |'


def cells(row):
    """Section, what, result and details of a row, as the table shows them."""
    if 'skipped' in row:
        result = 'skipped'
    elif 'ok' in row:
        result = 'ok' if row['ok'] else '**failed**'
    else:
        result = f'{row["value"]:.4g} {row["unit"]}' if isinstance(row['value'], float) else f'{row["value"]} {row["unit"]}'
    return [row['section'], row['what'], result.strip(), str(row.get('skipped') or row.get('detail', '')).replace('|', '/')]


def table(rows):
    """The rows as a table in Markdown."""
    return ['| section | what | result | details |', '| --- | --- | --- | --- |', *map(line, rows)]


def main(argv=None):
    args = parse_arguments(argv)
    flags = ['--device', args.device, *(['--small'] if args.small else [])]
    end, rows, seconds = time.monotonic() + args.minutes * 60, [], {}
    for section in SECTIONS:
        if args.only and section.name not in args.only:
            continue
        left = end - time.monotonic()
        if left < 1:
            over = f'the {args.minutes:g} minutes are over'
            rows.append(_shown({'section': section.name, 'what': section.what, 'skipped': over}))
            continue
        found, seconds[section.name] = run_section(section, flags, min(section.seconds, left))
        rows += found
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / 'table.md').write_text('\n'.join(table(rows)) + '\n')
    results = {'small': args.small, 'rows': rows, 'seconds': seconds}
    (args.output / 'results.json').write_text(json.dumps(results, indent=1) + '\n')
    failed = [row for row in rows if row.get('ok') is False]
    print(f'\n{len(rows)} rows in {sum(seconds.values()):.0f} s, of which {len(failed)} failed and '
          f'{sum("skipped" in row for row in rows)} were skipped: {args.output}/table.md and results.json')
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
