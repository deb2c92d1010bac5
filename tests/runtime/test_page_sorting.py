"""Long tables are sorted by a click, in a browser that is there."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from openblip.runtime.page import Page

BROWSER = shutil.which("chromium")
# What a reader does, and then what stands in the table, told by the title of the page.
CLICKS = """<script>
const told = [];
for (const at of [0, 0, 1, 1, 2, 3]) {
  document.querySelectorAll('th button')[at].click();
  told.push([...document.querySelectorAll('tbody tr')].map((row) => row.cells[0].textContent));
}
document.title = told.map((names) => names.join(' ')).join('; ');
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="no chromium to click in")
def test_a_click_sorts_and_the_next_one_the_other_way_round(tmp_path: Path) -> None:
    rows = [
        ["r2", "1,200", "3 min 20 s", "b"],
        ["r10", "-", "45.0 s", "a"],
        ["r1", "90 %", "1 h 02 min", "B"],
    ]
    page = Page("t", "l")
    page.table(["name", "n", "time", "text"], rows + [[f"x{n}", "-", "-", "z"] for n in range(9)])
    html = page.save(tmp_path / "page.html").read_text("utf-8")
    # The page itself allows no script but its own.
    html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html)
    (tmp_path / "clicked.html").write_text(html.replace("</body>", f"{CLICKS}</body>"))
    assert BROWSER is not None
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--dump-dom"]
    flags += ["--disable-background-networking", f"--user-data-dir={tmp_path / 'profile'}"]
    command = [BROWSER, *flags, (tmp_path / "clicked.html").as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    found = re.findall(r"<title>([^<]*)", dom)[0].split("; ")
    orders = [[name for name in order.split() if name[0] == "r"] for order in found]
    assert orders == [
        ["r1", "r2", "r10"],
        ["r10", "r2", "r1"],
        ["r2", "r1", "r10"],
        ["r1", "r2", "r10"],
        ["r1", "r2", "r10"],
        ["r10", "r2", "r1"],
    ]
