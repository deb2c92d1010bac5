#!/bin/sh
# Installs a wheel into an environment of its own and uses it outside of the checkout, as a reader does:
# scripts/wheel_test.sh WHEEL. The environment begins with the packages of .venv (or of PYTHON), so nothing is fetched
# and no openblip but the wheel's is seen.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
wheel=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
python=${PYTHON:-$root/.venv/bin/python}
work=$(mktemp -d)
studio=
cleanup() {
  [ -z "$studio" ] || kill "$studio" 2>/dev/null || true
  rm -rf "$work"
}
trap cleanup EXIT INT TERM
unset PYTHONPATH
cd "$work"

"$python" -m venv env
site=$(env/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' >"$site/packages.pth"
env/bin/pip install --quiet --no-deps --ignore-installed "$wheel"
env/bin/python - <<CHECK
import openblip, pathlib, sys
home = pathlib.Path(openblip.__file__).resolve()
assert pathlib.Path("$site").resolve() in home.parents, f"not the wheel's: {home}"
CHECK
PATH="$work/env/bin:$PATH"

# Every stage of the demo, with few pictures and steps: a minute or two.
cat >small_demo.py <<'DEMO'
import pathlib
from openblip.world import WorldConfig
from openblip.world.demo import DemoConfig, run_demo, write_demo_report

if __name__ == "__main__":
    world = WorldConfig(web_rows=200, human_rows=140, val_rows=2, test_rows=12)
    small = DemoConfig(world=world, pretrain_steps=3, captioner_steps=2, filter_steps=2, batch_size=8, threshold=0.0)
    result = run_demo(pathlib.Path("demo"), small, say=print)
    print(write_demo_report(result))
DEMO
python small_demo.py
mkdir photos
python - <<'PHOTOS'
import pathlib
from openblip.table.table import PairTable
table = PairTable.open("demo/pairs.lance")
for number, row in enumerate(table.take(range(4), ["image"]).to_pylist()):
    pathlib.Path("photos", f"{number}.png").write_bytes(row["image"])
PHOTOS
openblip caption photos --model demo/captioner -o captions.jsonl
test "$(wc -l <captions.jsonl)" -gt 0
openblip index build photos --model demo/filter
openblip search photos "a red circle" --model demo/filter --page found.html
test -s found.html

openblip studio photos --captioner demo/captioner --filter demo/filter --port 0 --no-open >studio.log 2>&1 &
studio=$!
python - <<'CHECK'
import pathlib, re, time, urllib.request
for _ in range(600):
    found = re.search(r"studio: (http\S+)", pathlib.Path("studio.log").read_text())
    if found:
        break
    time.sleep(0.2)
page = urllib.request.urlopen(found.group(1), timeout=60).read().decode()
assert "openblip" in page.lower(), page[:200]
print("studio: its page is there")
CHECK
echo "the wheel works: demo, caption, search, studio"
