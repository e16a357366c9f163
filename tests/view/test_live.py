"""`keystep view` over real HTTP, while a real run goes on in another process."""

import socket
import sqlite3

import pytest
from filled import HOSTILE, Filled, many, step
from serving import News, get, passes, running, viewing
from worker import Worker

from keystep.errors import BadInput
from keystep.run import AheadBy, Journal, Run
from keystep.run.builtin import Hanoi
from keystep.view import report
from keystep.view.live import serve


def undisturbed():
    run = Run(Worker([0.8, 0.1]), vote=AheadBy(3), id="r", seed=5)
    return run.execute_sync(Hanoi(disks=6))


def test_pages_follow_a_run_to_its_end(tmp_path):
    """Two viewers of the run and one of the list see it move and end, and the run comes out as if nobody had looked."""
    file = tmp_path / "a.db"
    Journal(file).close()
    with viewing(file) as server, running(file) as run:
        runs = News(server.where, "/events")
        runs.until("1 run under way", "hanoi")
        viewers = [News(server.where, "/runs/r/events") for _ in range(2)]
        for viewer in viewers:
            assert "first to lead by 3, seed 5" in viewer.until("20 of 63 steps so far", "running")
        status, page, headers = get(server.where, "/runs/r")
        assert status == 200 and "20 of 63 steps so far" in page and 'data-events="/runs/r/events"' in page
        assert "connect-src 'self'" in headers["content-security-policy"] and headers["cache-control"] == "no-store"
        status, part, _ = get(server.where, "/runs/r/bins/7")
        assert status == 200 and "<h3>Step 7</h3>" in part
        passes(run)
        for viewer in viewers:
            viewer.until("40 of 63 steps so far")
        passes(run)
        for viewer in viewers:
            viewer.until("63 steps, every one right", "Result")
        runs.until("No run under way", "right")
        for news in (*viewers, runs):
            news.close()
        outcome = undisturbed()
        assert int(run.stdout.readline()) == outcome.samples
    journal = Journal(file)
    assert journal.run("r")["result"]["result"] == outcome.result
    assert "63 steps, every one right" in report(journal, "r")
    journal.close()


def test_a_viewer_that_stays_does_not_keep_the_server(tmp_path):
    made = Filled(tmp_path / "a.db")
    many(made, 100)
    with viewing(tmp_path / "a.db") as server:
        news = News(server.where, "/runs/r/events")
        news.until("100")
    while news.next() is not None:  # the stream has an end
        pass
    made.close()


def test_a_run_that_is_deleted_or_begun_anew(tmp_path):
    made = Filled(tmp_path / "a.db")
    many(made, 100)
    with viewing(tmp_path / "a.db") as server:
        news = News(server.where, "/runs/r/events")
        news.until("after 100 steps")
        made.journal.delete("r")
        assert news.next() == ("gone", {}) and news.next() is None
        assert get(server.where, "/runs/r")[0] == 404
        made.journal.begin("r", "another", None, {"work": {}})
        scope = made.place()
        made.put("steps", [step(scope, 0)])
        news = News(server.where, "/runs/r/events")
        assert "another · r Interrupted after 1 steps" in news.until("another")
        news.close()
    made.close()


def test_nothing_is_written(tmp_path):
    made = Filled(tmp_path / "a.db")
    many(made, 500)
    with sqlite3.connect(tmp_path / "a.db") as watching, viewing(tmp_path / "a.db") as server:
        before = watching.execute("PRAGMA data_version").fetchone()
        for path in ("/", "/runs/r", "/runs/r/bins/0"):
            assert get(server.where, path)[0] == 200
        assert watching.execute("PRAGMA data_version").fetchone() == before
    watching.close()
    made.close()


def test_who_may_ask_what(tmp_path):
    made = Filled(tmp_path / "a.db", "r", HOSTILE[0], "a/b c?d#e")
    with viewing(tmp_path / "a.db") as server:
        for path in ("/runs/none", "/runs/none/events", "/runs/none/bins/0", "/runs/r/bins/0", "/nothing", "/runs/r/bins/x"):
            status, text, _ = get(server.where, path)
            assert status == 404 and "Traceback" not in text and "<script" not in text
        assert get(server.where, "/", host="evil.example")[0] == 400  # a name of another site that leads here
        assert get(server.where, "/", host=server.where.removeprefix("http://").replace("127.0.0.1", "localhost"))[0] == 200
        page = get(server.where, "/")[1]
        assert HOSTILE[0] not in page
        links = [part.split('"')[0] for part in page.split('href="')[1:] if part.startswith("/runs/")]
        assert len(links) == 3 and all(get(server.where, link)[0] == 200 for link in links)
    made.close()


def test_the_address(tmp_path):
    journal = Journal(tmp_path / "a.db")
    for host in ("0.0.0.0", "example.org", "192.0.2.1"):
        with pytest.raises(BadInput, match="open to other machines"):
            serve(journal, host)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(BadInput, match="cannot listen"):
        serve(journal, port=taken.getsockname()[1])
    journal.close()
