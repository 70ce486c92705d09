# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from monai_reg_ext.apps import write_html_report

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-default-apps"),
    "--host-resolver-rules=MAP * ~NOTFOUND",
)
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
OWN = re.compile(r"https?://[\w.]+\.google(apis)?\.com/|chrome|data:|file:")  # what a browser asks for by itself
TABLE = """pair,dice,dice_before,sdlogj,error
p10,80.5,60,0.04,
p2,9.5,61,0.03,
broken,,,,no such file
p1,100,62,0.05,
<img src=http://127.0.0.1:9/x.png>,70,63,0.00001,
"""
RUN_ORDER = ["p10", "p2", "broken", "p1", "<img src=http://127.0.0.1:9/x.png>"]
FOREIGN = RUN_ORDER[-1]


class Browser:
    """Chromium that shows a page from disk and tells its elements, what its console says and what it asked for."""

    def __init__(self, program: str, folder: Path) -> None:
        self.program = program
        self.folder = folder

    def show(self, page: Path, fragment: str = "", width: int = 1280) -> tuple[str, list[str], set[str]]:
        log = self.folder / "net.json"
        places = (f"--user-data-dir={self.folder}/profile", f"--log-net-log={log}", f"--window-size={width},900")
        options = (*QUIET, *places, "--enable-logging=stderr", "--virtual-time-budget=3000", "--dump-dom")
        done = subprocess.run(
            [self.program, *options, page.as_uri() + fragment], capture_output=True, text=True, timeout=120, check=True
        )
        console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        addresses = set(re.findall(r'"url":"([^"]*)"', log.read_text()))
        return done.stdout, console, {address for address in addresses if not OWN.match(address)}


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Browser:
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed")
    return Browser(program, tmp_path_factory.mktemp("browser"))


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    (folder / "metrics.csv").write_text(TABLE, encoding="utf-8")
    (folder / "settings.json").write_text(json.dumps({"spacing": "auto"}), encoding="utf-8")
    return write_html_report(folder)


def order(dom: str) -> list[str]:
    """The pairs from the top of the table."""
    names = re.findall(r'<th scope="row" data-value="([^"]*)"', dom)
    return [name.replace("&lt;", "<").replace("&gt;", ">") for name in names]


def directions(dom: str) -> dict[str, str]:
    return dict(re.findall(r'data-key="(\w+)"[^>]* aria-sort="(\w+)"', dom))


def with_script(page: Path, script: str) -> Path:
    """A copy of the page in which a script may act as its reader."""
    text = POLICY.sub("", page.read_text(encoding="utf-8"))
    copy = page.with_name("acted.html")
    copy.write_text(text.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    return copy


@pytest.mark.parametrize(
    ("fragment", "names"),
    [
        ("", RUN_ORDER),
        ("#sort=dice", ["p2", FOREIGN, "p10", "p1", "broken"]),
        ("#sort=-dice", ["p1", "p10", FOREIGN, "p2", "broken"]),
        ("#sort=sdlogj", [FOREIGN, "p2", "p10", "p1", "broken"]),
        ("#sort=pair", [FOREIGN, "broken", "p1", "p2", "p10"]),
        ("#sort=nonsense", RUN_ORDER),
        ("#pair-2", RUN_ORDER),
        ("#sort=%", RUN_ORDER),
    ],
)
def test_the_address_says_how_the_table_is_sorted(browser, page, fragment, names):
    dom, console, _ = browser.show(page, fragment)

    assert order(dom) == names
    assert console == []
    key = re.search(r"sort=(-?)(dice|sdlogj|pair)", fragment)
    expected = dict.fromkeys(("pair", "dice_before", "dice", "sdlogj"), "none")
    if key:
        expected[key[2]] = "descending" if key[1] else "ascending"
    assert directions(dom) == expected


def test_the_page_asks_the_network_for_nothing(browser, page):
    _, console, addresses = browser.show(page)

    assert console == []
    assert addresses == set()


def test_the_page_could_not_reach_the_network_if_it_wanted(browser, page):
    foreign = "http://127.0.0.1:9/y.png"
    additions = f'<img src="{foreign}"><script>document.title = "taken over"</script></body>'
    text = page.read_text(encoding="utf-8").replace("</body>", additions)
    greedy, free = page.with_name("greedy.html"), page.with_name("free.html")
    greedy.write_text(text, encoding="utf-8")
    free.write_text(POLICY.sub("", text), encoding="utf-8")

    dom, console, addresses = browser.show(greedy)
    free_dom, _, free_addresses = browser.show(free)

    assert addresses == set()
    assert "<title>taken over" not in dom
    assert len([line for line in console if "Content Security Policy" in line]) == 2
    assert free_addresses == {foreign}  # it is the page's policy that makes the difference
    assert "<title>taken over" in free_dom


@pytest.mark.parametrize(
    ("clicks", "names", "direction"),
    [
        (1, ["p2", FOREIGN, "p10", "p1", "broken"], "ascending"),
        (2, ["p1", "p10", FOREIGN, "p2", "broken"], "descending"),
        (3, RUN_ORDER, "none"),
    ],
)
def test_a_click_sorts_a_second_one_turns_and_a_third_goes_back(browser, page, clicks, names, direction):
    script = f"""
        const button = document.querySelector("[data-key=dice] button");
        let left = {clicks};
        const again = () => {{ if (left--) button.click(); }};
        window.addEventListener("hashchange", again);
        again();
    """
    dom, console, _ = browser.show(with_script(page, script))

    assert order(dom) == names
    assert directions(dom)["dice"] == direction
    assert console == []
    said = {"none": "in the order of the run"}.get(direction, f"sorted by Dice %, {direction}")
    assert f'role="status">{said}</span>' in dom


def test_the_keyboard_reaches_every_column_and_keeps_its_place_after_sorting(browser, page):
    script = """
        const buttons = [...document.querySelectorAll("thead button")];
        const reached = buttons.filter((button) => { button.focus(); return document.activeElement === button; });
        buttons[2].focus();
        window.addEventListener("hashchange", () => setTimeout(() => {
          const kept = document.activeElement === buttons[2];
          document.title = `${reached.length} of ${buttons.length} reached, ${kept}`;
        }));
        buttons[2].click();
    """
    dom, _, _ = browser.show(with_script(page, script))

    assert "<title>4 of 4 reached, true</title>" in dom


@pytest.mark.parametrize("width", [1280, 420])
def test_a_wide_table_scrolls_in_itself_and_not_the_page(browser, tmp_path, width):
    names = [f"metric_of_somebody_else_{i}" for i in range(12)]
    values = ",".join(["0.25"] * len(names))
    (tmp_path / "metrics.csv").write_text(f"pair,{','.join(names)},error\n{'long_' * 30},{values},\n")
    script = """
        const over = (element) => element.scrollWidth > element.clientWidth;
        document.title = `page ${over(document.documentElement)}, table ${over(document.querySelector(".table"))}`;
    """
    dom, _, _ = browser.show(with_script(write_html_report(tmp_path), script), width=width)

    assert "<title>page false, table true</title>" in dom
