"""Makes docs/assets/report.png, the picture in docs/report.md: `python tests/view/picture.py` runs a tower of 12 disks, forecast first."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from browser import browser, look, shot
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

PICTURE = Path(__file__).parents[2] / "docs" / "assets" / "report.png"
MOST_BYTES = 200_000
KEYSTEP = [sys.executable, "-c", "from keystep.cli import main; main()"]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*KEYSTEP, "run", "hanoi", "--set", "disks=12", "--forecast"], cwd=folder, check=True)
        [run] = json.loads(subprocess.check_output([*KEYSTEP, "runs", "--json"], cwd=folder))
        subprocess.run([*KEYSTEP, "report", run["run_id"], "--out", "report.html"], cwd=folder, check=True)
        with browser(Path(folder) / "profile") as driver:
            look(driver, (1100, 1330))
            driver.get((Path(folder) / "report.html").as_uri())
            driver.find_element(By.ID, "slider").send_keys(*[Keys.ARROW_RIGHT] * 33)
            driver.execute_script("document.activeElement.blur()")
            shot(driver, PICTURE, whole=False)
    assert PICTURE.stat().st_size <= MOST_BYTES, f"{PICTURE.stat().st_size:,} bytes are too many"


if __name__ == "__main__":
    main()
