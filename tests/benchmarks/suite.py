"""How long the tests take: in all, by file, and the slowest. Run by hand, on an idle machine:

    python tests/benchmarks/suite.py
    python tests/benchmarks/suite.py --marks quick        # as `pytest -m quick`
    python tests/benchmarks/suite.py --save               # for the page of benchmarks too

The aims, on two idle cores: everything but nightly in 10 minutes, `quick` in 2."""
import argparse, subprocess, sys, tempfile, time
from pathlib import Path
from xml.etree import ElementTree
import pandas as pd
from report import report

ROOT = Path(__file__).resolve().parents[2]

def run_suite(options):
    "Seconds that pytest took, and what each test took: file, name, seconds"
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder)/'tests.xml'
        start = time.perf_counter()
        code = subprocess.run([sys.executable, '-m', 'pytest', '-q', f'--junitxml={kept}', *options], cwd=ROOT).returncode
        time_s = time.perf_counter() - start
        if code: sys.exit(f'pytest ended with {code}: a suite that fails is not timed')
        cases = list(ElementTree.parse(kept).iter('testcase'))
    rows = [(case.get('classname').rpartition('.')[2], case.get('name'), float(case.get('time'))) for case in cases]
    return time_s, pd.DataFrame(rows, columns=['file', 'test', 'seconds'])

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--marks', default='not nightly', help='as for pytest -m')
    parser.add_argument('--save', action='store_true')
    args = parser.parse_args()
    time_s, tests = run_suite(['-m', args.marks])
    files = tests.groupby('file').seconds.agg(['size', 'sum']).sort_values('sum', ascending=False)
    note = f'-m {args.marks!r}: {len(tests):,} tests in {time_s / 60:.1f} min'
    report('The tests, by file', note, files.set_axis(['tests', 'seconds'], axis=1).round(1), args.save)
    slowest = tests.nlargest(20, 'seconds').set_index('test').round(1)
    report('The slowest tests', note, slowest, args.save)
