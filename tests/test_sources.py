"""Whatever a user names becomes a local file, whole, or an error that says why not."""

from __future__ import annotations

import gc
import gzip
import logging
import os
import pickle
import random
import resource
import socket
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest

from tests.http_server import File, given_up, serve
from video.errors import (
    DownloadFailed,
    ItemCancelled,
    MissingDependency,
    OutputError,
    SourceError,
    SourceNotFound,
)
from video.registry import Registry, sources
from video.sources import base
from video.sources.base import Fetched, display_name, fetch, redact, resolve, safe_stem
from video.sources.http import HttpSource
from video.sources.local import LocalSource
from video.sources.ytdlp import YtdlpSource

BODY = random.Random(1).randbytes(300_000)
OTHER = random.Random(2).randbytes(310_000)
HTTP = HttpSource(timeout=5, wait=0.01)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture
def server():
    with serve() as running:
        yield running


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# -- local --


def test_a_path_is_used_where_it_lies(tmp_path):
    path = tmp_path / "a b.mp4"
    path.write_bytes(b"x")
    assert LocalSource().fetch(str(path), tmp_path) == Fetched(path, "a b", temporary=False)


def test_a_tilde_means_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "v.mp4").write_bytes(b"x")
    assert LocalSource().fetch("~/v.mp4", tmp_path).path == tmp_path / "v.mp4"


def test_a_file_address_is_decoded(tmp_path):
    path = tmp_path / "50% off #1?.mp4"
    path.write_bytes(b"x")
    got = fetch(path.as_uri(), tmp_path)
    assert got == Fetched(path, "50% off #1?", temporary=False)


@pytest.mark.parametrize("name", ["-v.mp4", 'it\'s "x".mp4', "a:b.mp4", "100%.mp4", "🎬.mp4", "a\nb.mp4"])
def test_odd_names_are_found(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    assert fetch(str(tmp_path / name), tmp_path).path.name == name


def test_a_missing_file_names_the_nearest_one(tmp_path):
    (tmp_path / "holiday.mp4").write_bytes(b"x")
    with pytest.raises(SourceNotFound, match=r"Did you mean holiday\.mp4\?"):
        fetch(str(tmp_path / "holidy.mp4"), tmp_path)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(SourceNotFound, match=r"There is no folder .*nowhere"):
        fetch(str(tmp_path / "nowhere" / "v.mp4"), tmp_path)


def test_a_folder_is_refused_with_a_cure(tmp_path):
    with pytest.raises(SourceError, match=r"is a folder. Name the files in it"):
        fetch(str(tmp_path), tmp_path)


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "p.mp4")
    with pytest.raises(SourceError, match="not a regular file"):
        fetch(str(tmp_path / "p.mp4"), tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_said_to_be(tmp_path):
    (tmp_path / "v.mp4").write_bytes(b"x")
    (tmp_path / "v.mp4").chmod(0)
    with pytest.raises(SourceError, match="may not be read"):
        fetch(str(tmp_path / "v.mp4"), tmp_path)


@pytest.mark.parametrize(
    "source", ["a\0b.mp4", "x" * 300 + ".mp4", "file://elsewhere/v.mp4", "file://[x/v.mp4"]
)
def test_impossible_paths_are_source_errors(tmp_path, source):
    with pytest.raises(SourceError):
        fetch(source, tmp_path)


def test_a_loop_of_links_is_a_source_error(tmp_path):
    (tmp_path / "a.mp4").symlink_to(tmp_path / "a.mp4")
    with pytest.raises(SourceError, match="symbolic links"):
        fetch(str(tmp_path / "a.mp4"), tmp_path)


# -- which source --


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("v.mp4", LocalSource),
        ("C:\\v.mp4", LocalSource),
        ("http:/v.mp4", LocalSource),
        ("file:///v.mp4", LocalSource),
        ("https://h/v.MP4?x=1", HttpSource),
        ("HTTPS://h/v.mkv", HttpSource),
        ("https://h/watch?v=x.mp4", YtdlpSource),
        ("https://h/v.m3u8", YtdlpSource),
    ],
)
def test_each_address_goes_to_its_source(source, kind):
    assert isinstance(resolve(source), kind)


def test_an_address_that_nobody_takes_lists_every_reason():
    with pytest.raises(SourceError) as caught:
        resolve("ftp://me:secret@h/v.mp4")
    text = str(caught.value)
    assert text.startswith("ftp://h/v.mp4: no source takes it")
    assert all(name in text for name in ("local takes", "http takes", "ytdlp takes"))


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    fresh = Registry("source", "video.no_such_group", sources.builtin, SourceError)
    monkeypatch.setattr(base, "sources", fresh)
    return fresh


def test_a_third_partys_source_is_asked_first(registry, tmp_path):
    class Mine(LocalSource):
        pass

    registry.register("mine", Mine)
    assert isinstance(resolve("v.mp4"), Mine)


def test_a_broken_source_costs_nobody_else_a_file(registry, tmp_path):
    class Buggy(LocalSource):
        def claims(self, source: str) -> bool:
            raise ZeroDivisionError("oops")

    registry.register("buggy", Buggy)
    registry.register("absent", "no_such_module_anywhere:X")
    assert isinstance(resolve("v.mp4"), LocalSource)
    with pytest.raises(SourceError, match="buggy failed on it: ZeroDivisionError: oops"):
        resolve("ftp://h/v.mp4")


def test_without_yt_dlp_its_name_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "yt_dlp", None)
    monkeypatch.delitem(sys.modules, "video.sources.ytdlp")
    with pytest.raises(MissingDependency) as caught:
        sources.get("ytdlp")
    assert 'pip install "parallel-video[download]"' in str(caught.value)


def test_without_yt_dlp_any_address_is_tried_and_a_page_says_what_to_install(server, tmp_path, monkeypatch):
    monkeypatch.setattr("video.sources.http.find_spec", lambda name: None)
    url = server.add("/watch", File(b"<!DOCTYPE html><p>hello", type="text/html"))
    with pytest.raises(DownloadFailed, match=r"is a web page.*pip install \"parallel-video\[download\]\""):
        fetch(url, tmp_path)
    assert left(tmp_path) == []


# -- names and secrets --


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("clips/talk.mp4", "talk"),
        ("a:b 100%20.mp4", "a:b 100%20"),
        (".mp4", "mp4"),
        ("file:///x/my%20talk.mp4", "my talk"),
        ("https://h/x/my%20talk.mp4?token=s3cret#t=1", "my talk"),
        ("https://h/..%2F..%2Fetc%2Fpasswd.mp4", "passwd"),
        ("https://h/..%5C..%5Cx.mp4", "_.._x"),
        ("https://h/%00%0A", "_"),
        ("https://user:pw@example.org", "example.org"),
        ("https://[bad", "video"),
        ("", "video"),
    ],
)
def test_clips_are_named_after_the_source(source, name):
    assert display_name(source) == name


@pytest.mark.parametrize("text", ["é" * 300, "/" * 9, "..", "", "\udce9", " . "])
def test_a_stem_is_one_short_visible_component(text):
    stem = safe_stem(text)
    assert stem
    assert len(stem.encode()) <= 150
    assert "/" not in stem
    assert not stem.startswith(".")


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("v.mp4", "v.mp4"),
        ("https://h/v.mp4", "https://h/v.mp4"),
        ("https://me:pw@h:80/v.mp4", "https://h:80/v.mp4"),
        ("https://me:p@w@h/v.mp4", "https://h/v.mp4"),
        ("https://me:p/w@h/v.mp4", "https://h/v.mp4"),
        ("https://h:80/@me/v.mp4", "https://h:80/@me/v.mp4"),
        ("https://h/@me/v.mp4", "https://h/@me/v.mp4"),
        ("https://h/v?sig=a%2Fb&x=1#tok", "https://h/v?sig=…&x=…"),
        ("https://h/v?s3cret", "https://h/v?…"),
        ("https://h/watch?v=abc&key=s3cret", "https://h/watch?v=abc&key=…"),
        ("get http://a:b@h/x and http://c:d@i/y now", "get http://h/x and http://i/y now"),
    ],
)
def test_secrets_leave_an_address(text, clean):
    assert redact(text) == clean


def test_a_password_never_reaches_a_message_or_the_log(server, tmp_path, caplog):
    caplog.set_level(logging.DEBUG, logger="video")
    server.add("/short.mp4", File(BODY, length=len(BODY) + 9))
    server.add("/page.mp4", File(b"<html>", type="text/html"))
    for place in (
        f"{server.host}/none.mp4",
        f"{server.host}/short.mp4",
        f"{server.host}/page.mp4",
        "127.0.0.1:1/v",
    ):
        with pytest.raises(DownloadFailed) as caught:
            HTTP.fetch(f"http://me:hunter2@{place}?token=s3cret", tmp_path)
        said = str(caught.value) + repr(caught.value) + caplog.text
        assert "hunter2" not in said
        assert "s3cret" not in said


# -- http --


def test_a_download_is_whole_and_leaves_nothing_beside_it(server, tmp_path):
    got = fetch(server.add("/my%20talk.mp4", BODY), tmp_path)
    assert got.path.read_bytes() == BODY
    assert (got.title, got.temporary, got.path.suffix) == ("my talk", True, ".mp4")
    assert left(tmp_path) == [got.path.name]


def test_a_download_cut_twice_is_completed_by_range(server, tmp_path):
    url = server.add("/v.mp4", File(BODY, cuts=[100_000, 50_000]))
    assert HTTP.fetch(url, tmp_path).path.read_bytes() == BODY
    assert server.ranges("/v.mp4") == [None, "bytes=100000-", "bytes=150000-"]


def test_a_date_alone_is_enough_to_go_on(server, tmp_path):
    file = File(BODY, cuts=[100_000], etag=None, modified="Mon, 01 Jan 2024 00:00:00 GMT")
    assert HTTP.fetch(server.add("/v.mp4", file), tmp_path).path.read_bytes() == BODY
    assert server.ranges("/v.mp4") == [None, "bytes=100000-"]


@pytest.mark.parametrize(
    "file",
    [File(BODY, etag=None), File(BODY, etag='W/"1"'), File(BODY, etag='"é"'), File(BODY, ranges=False)],
)
def test_where_the_server_vouches_for_nothing_it_starts_afresh(server, tmp_path, file):
    file.cuts = [100_000]
    assert HTTP.fetch(server.add("/v.mp4", file), tmp_path).path.read_bytes() == BODY
    assert server.asked[-1].status == 200


def test_what_an_earlier_call_left_is_gone_on_with(server, tmp_path):
    url = server.add("/v.mp4", File(BODY, cuts=[100_000]))
    with pytest.raises(DownloadFailed, match="broke off"):
        HttpSource(tries=1).fetch(url, tmp_path)
    assert HTTP.fetch(url, tmp_path).path.read_bytes() == BODY
    assert server.ranges("/v.mp4") == [None, "bytes=100000-"]
    assert len(left(tmp_path)) == 1


@pytest.mark.parametrize("obeys", [True, False])
@pytest.mark.parametrize("now", [OTHER, BODY[:50_000]])
def test_a_part_of_another_version_is_not_glued(server, tmp_path, obeys, now):
    url = server.add("/v.mp4", File(BODY, cuts=[100_000]))
    with pytest.raises(DownloadFailed):
        HttpSource(tries=1).fetch(url, tmp_path)
    server.add("/v.mp4", File(now, obeys_if_range=obeys))
    assert HTTP.fetch(url, tmp_path).path.read_bytes() == now


def test_a_part_without_its_mark_is_not_glued(server, tmp_path):
    url = server.add("/v.mp4", File(BODY, cuts=[100_000]))
    with pytest.raises(DownloadFailed):
        HttpSource(tries=1).fetch(url, tmp_path)
    next(tmp_path.glob("*.version")).unlink()
    assert HTTP.fetch(url, tmp_path).path.read_bytes() == BODY
    assert server.ranges("/v.mp4") == [None, None]


def test_a_download_with_progress_outlasts_its_tries(server, tmp_path):
    body = random.Random(3).randbytes(8 << 20)
    url = server.add("/v.mp4", File(body, cuts=[5 << 18] * 6))
    assert HttpSource(tries=2, wait=0.01).fetch(url, tmp_path).path.read_bytes() == body
    assert len(server.asked) == 7


def test_a_server_that_always_cuts_and_starts_over_ends_in_an_error(server, tmp_path):
    body = random.Random(3).randbytes(2 << 20)
    url = server.add("/v.mp4", File(body, ranges=False, cuts=[3 << 19] * 50))
    with pytest.raises(DownloadFailed, match="broke off"):
        HttpSource(tries=3, wait=0.01).fetch(url, tmp_path)
    assert len(server.asked) <= 6


def test_a_body_shorter_than_promised_is_no_result(server, tmp_path):
    url = server.add("/v.mp4", File(BODY, length=len(BODY) + 1))
    with pytest.raises(DownloadFailed):
        HTTP.fetch(url, tmp_path)
    assert all(".part" in name for name in left(tmp_path))


def test_a_stalled_server_ends_in_an_error(server, tmp_path):
    url = server.add("/v.mp4", File(BODY, stalls=[100_000] * 9))
    with pytest.raises(DownloadFailed, match=r"stalled: no byte for 0\.2 s"):
        HttpSource(timeout=0.2, tries=2, wait=0.01).fetch(url, tmp_path)
    assert len(server.asked) == 2


def test_a_stall_is_gone_on_from(server, tmp_path):
    url = server.add("/v.mp4", File(BODY, stalls=[100_000]))
    assert HttpSource(timeout=0.3, wait=0.01).fetch(url, tmp_path).path.read_bytes() == BODY
    assert server.ranges("/v.mp4")[1] == "bytes=100000-"


def test_a_servers_passing_failure_is_retried(server, tmp_path):
    url = server.add("/v.mp4", File(BODY, statuses=[503, 500]))
    assert HTTP.fetch(url, tmp_path).path.read_bytes() == BODY


def test_a_servers_lasting_failure_ends_with_its_status(server, tmp_path):
    url = server.add("/v.mp4", File(BODY, statuses=[503] * 9))
    with pytest.raises(DownloadFailed, match="HTTP 503") as caught:
        HTTP.fetch(url, tmp_path)
    assert caught.value.status == 503
    assert len(server.asked) == HTTP.tries


def test_a_server_that_asks_to_wait_is_not_asked_before(server, tmp_path):
    url = server.add("/v.mp4", File(BODY, statuses=[503], headers={"Retry-After": "1"}))
    began = time.monotonic()
    assert HTTP.fetch(url, tmp_path).path.read_bytes() == BODY
    assert time.monotonic() - began >= 1


@pytest.mark.parametrize("asked", ["60", "Fri, 01 Jan 2100 00:00:00 GMT"])
def test_for_a_long_wait_the_batch_is_to_come_back_and_not_the_worker(server, tmp_path, asked):
    url = server.add("/v.mp4", File(BODY, statuses=[503] * 2, headers={"Retry-After": asked}))
    with pytest.raises(DownloadFailed, match="HTTP 503") as caught:
        HTTP.fetch(url, tmp_path)
    assert caught.value.retry_after == asked
    assert len(server.asked) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 429, 501])
def test_a_refusal_is_final_and_says_its_status(server, tmp_path, status):
    url = server.add("/v.mp4", File(BODY, statuses=[status] * 2, headers={"Retry-After": "7"}))
    with pytest.raises(DownloadFailed, match=f"HTTP {status}.*wait 7 s") as caught:
        HTTP.fetch(url, tmp_path)
    assert caught.value.status == status
    assert len(server.asked) == 1
    assert left(tmp_path) == []


def test_redirects_are_followed(server, tmp_path):
    server.add("/v.mp4", File(BODY, cuts=[100_000]))
    url = server.add("/old.mp4", File(statuses=[302] * 2, headers={"Location": "/v.mp4"}))
    assert HTTP.fetch(url, tmp_path).path.read_bytes() == BODY


def test_redirects_in_a_circle_end_in_an_error(server, tmp_path):
    url = server.add("/v.mp4", File(statuses=[302] * 99, headers={"Location": "/v.mp4"}))
    with pytest.raises(DownloadFailed, match="redirects without end"):
        HTTP.fetch(url, tmp_path)


@pytest.mark.parametrize("place", ["ftp://127.0.0.1/v.mp4", "file:///etc/passwd"])
def test_a_redirect_leads_to_no_other_scheme(server, tmp_path, place):
    url = server.add("/v.mp4", File(statuses=[302], headers={"Location": place}))
    with pytest.raises(DownloadFailed, match="other than http"):
        HTTP.fetch(url, tmp_path)


def test_a_host_that_refuses_is_said_to(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(DownloadFailed, match="refuses the connection"):
            HTTP.fetch(f"http://127.0.0.1:{port}/v.mp4", tmp_path)


def test_an_unknown_host_is_said_to_be(tmp_path, monkeypatch):
    def unknown(*args, **kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(DownloadFailed, match="the host cannot be found"):
        HTTP.fetch("http://no-such-host.invalid/v.mp4", tmp_path)


def test_a_connection_that_is_not_safe_is_refused(server, tmp_path):
    server.add("/v.mp4", BODY)
    with pytest.raises(DownloadFailed, match="not safe"):
        HTTP.fetch(f"https://{server.host}/v.mp4", tmp_path)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:99999999/v.mp4",
        "http://",
        "http://[x/v.mp4",
        "http://127.0.0.1/\udcff.mp4",
        "ftp://h/v",
    ],
)
def test_an_invalid_address_is_an_error_of_ours(tmp_path, url):
    with pytest.raises(DownloadFailed):
        HTTP.fetch(url, tmp_path)


@pytest.mark.parametrize(
    ("file", "what"),
    [
        (File(b"x", type="text/html; charset=utf-8"), "web page"),
        (File(b"\n <!doctype HTML>", type="video/mp4"), "web page"),
        (File(b"#EXTM3U\n", type="text/plain"), "playlist"),
        (File(b"<?xml?>", type="application/dash+xml"), "playlist"),
        (File(b""), "empty"),
    ],
)
def test_what_is_no_media_file_is_refused_and_not_kept(server, tmp_path, file, what):
    with pytest.raises(DownloadFailed, match=what):
        HTTP.fetch(server.add("/v.mp4", file), tmp_path)
    assert left(tmp_path) == []


def test_a_body_compressed_against_our_wish_is_unpacked(server, tmp_path):
    file = File(gzip.compress(BODY), headers={"Content-Encoding": "gzip"}, cuts=[100_000])
    assert HTTP.fetch(server.add("/v.mp4", file), tmp_path).path.read_bytes() == BODY


def test_two_addresses_with_one_base_name_do_not_collide(server, tmp_path):
    one = fetch(server.add("/a/v.mp4", BODY), tmp_path)
    two = fetch(server.add("/b/v.mp4", OTHER), tmp_path)
    assert (one.path.read_bytes(), two.path.read_bytes()) == (BODY, OTHER)
    assert one.title == two.title == "v"


def test_a_name_cannot_leave_the_folder(server, tmp_path):
    server.add("/..%2F..%2Fx.mp4", BODY)
    folder = tmp_path / "in"
    folder.mkdir()
    got = fetch(f"http://{server.host}/..%2F..%2Fx.mp4", folder)
    assert got.path.parent == folder
    assert left(tmp_path) == ["in"]


def test_two_downloads_of_one_address_into_one_folder_do_not_mix(server, tmp_path):
    url = server.add("/v.mp4", File(BODY, stalls=[100_000]))
    first = threading.Thread(target=lambda: HTTP.fetch(url, tmp_path))
    first.start()
    while not any(path.stat().st_size == 100_000 for path in tmp_path.glob("*.part")):
        assert first.is_alive()
    with pytest.raises(SourceError, match="another job"):
        HTTP.fetch(url, tmp_path)
    server.closing.set()  # ends the stall by a cut: the first one goes on by itself
    first.join()
    assert next(tmp_path.glob("*.mp4")).read_bytes() == BODY


def test_a_given_up_item_stops_and_keeps_what_it_has(server, tmp_path):
    url = server.add("/v.mp4", File(BODY, cuts=[100_000]))
    with pytest.raises(DownloadFailed):
        HttpSource(tries=1).fetch(url, tmp_path)
    with pytest.raises(ItemCancelled):
        given_up(HTTP.fetch, url, tmp_path)
    assert next(tmp_path.glob("*.part")).stat().st_size == 100_000


def test_a_folder_that_is_not_there_is_an_output_error(server, tmp_path):
    with pytest.raises(OutputError, match="cannot be written"):
        HTTP.fetch(server.add("/v.mp4", BODY), tmp_path / "nowhere")


def test_a_write_that_fails_is_an_output_error(server, tmp_path):
    url = server.add("/v.mp4", BODY)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OutputError, match="cannot be written"):
            HTTP.fetch(url, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert HTTP.fetch(url, tmp_path).path.read_bytes() == BODY


def test_errors_cross_a_process_border(server, tmp_path):
    with pytest.raises(DownloadFailed) as caught:
        HTTP.fetch(f"http://{server.host}/none.mp4", tmp_path)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.status) == (str(caught.value), 404)


def test_a_failed_download_leaves_no_connection_or_file_open(server, tmp_path):
    server.add("/short.mp4", File(BODY, length=len(BODY) + 9))
    server.add("/page.mp4", File(b"<html>", type="text/html"))
    with warnings.catch_warnings(record=True) as leaks:
        warnings.simplefilter("always", ResourceWarning)
        for name in ("none", "short", "page"):
            with pytest.raises(DownloadFailed):
                HTTP.fetch(f"http://{server.host}/{name}.mp4", tmp_path)
        gc.collect()
    assert [str(leak.message) for leak in leaks] == []
