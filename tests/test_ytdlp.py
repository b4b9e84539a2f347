"""Pages and playlists become one local file by yt-dlp, without an ffmpeg command."""

from __future__ import annotations

import gc
import logging
import pickle
import resource
import warnings
from pathlib import Path

import av
import pytest

from tests.http_server import File, Server, given_up, serve, write_streams
from video.errors import DownloadFailed, ItemCancelled, OutputError
from video.sources.base import fetch
from video.sources.ytdlp import YtdlpSource, _choose

YTDLP = YtdlpSource(timeout=5, tries=2)


@pytest.fixture(autouse=True)
def _tidy(monkeypatch: pytest.MonkeyPatch):
    """Failing, yt-dlp leaves files and sockets to the garbage collector: that is done here, in silence."""
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("PATH", "")  # no ffmpeg command anywhere
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture
def server():
    with serve() as running:
        yield running


@pytest.fixture(scope="module")
def hls(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return write_streams(tmp_path_factory.mktemp("hls") / "v.m3u8", seconds=3)


def add_hls(server: Server, files: dict[str, bytes], folder: str = "") -> str:
    for name, body in files.items():
        kind = "application/vnd.apple.mpegurl" if name.endswith(".m3u8") else "video/mp2t"
        server.add(f"{folder}/{name}", File(body, type=kind))
    return f"http://{server.host}{folder}/v.m3u8"


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def frames(path: Path) -> int:
    with av.open(str(path)) as media:
        return sum(1 for _ in media.decode(video=0))


def test_an_hls_playlist_becomes_a_file_with_all_frames(server, tmp_path, hls):
    got = fetch(add_hls(server, hls), tmp_path)
    assert frames(got.path) == 30
    assert (got.title, got.temporary) == ("v", True)
    assert left(tmp_path) == [got.path.name]


def test_a_missing_segment_is_an_error_and_not_a_shorter_video(server, tmp_path, hls):
    url = add_hls(server, hls)
    del server.files["/v1.ts"]
    with pytest.raises(DownloadFailed, match="404"):
        YTDLP.fetch(url, tmp_path)


def test_a_segment_that_fails_once_is_fetched_again(server, tmp_path, hls):
    url = add_hls(server, hls)
    server.files["/v1.ts"].statuses = [503]
    assert frames(YTDLP.fetch(url, tmp_path).path) == 30


@pytest.mark.parametrize("sound", [False, True])
def test_a_dash_playlist_becomes_one_file_with_picture_and_sound(server, tmp_path, sound):
    for folder in ("made", "got"):
        (tmp_path / folder).mkdir()
    for name, body in write_streams(tmp_path / "made" / "v.mpd", 2, sound).items():
        kind = "application/dash+xml" if name.endswith(".mpd") else "video/mp4"
        server.add(f"/{name}", File(body, type=kind))
    got = fetch(f"http://{server.host}/v.mpd", tmp_path / "got")
    assert frames(got.path) == 20
    assert left(tmp_path / "got") == [got.path.name]
    with av.open(str(got.path)) as media:
        heard = sum(frame.samples for frame in media.decode(audio=0)) if media.streams.audio else 0
    assert 2 * 16000 * sound <= heard <= 2.2 * 16000 * sound


@pytest.mark.parametrize(
    ("formats", "chosen"),
    [
        (["a", "v720", "w360"], ["v720", "a"]),
        (["a", "v360", "w360"], ["w360"]),
        (["a", "w360"], ["w360"]),
        (["v720", "w360"], ["w360"]),
        (["a", "v360", "v720"], ["v720", "a"]),
        (["v720"], ["v720"]),
        (["?"], ["?"]),
        (["a"], ["a"]),
    ],
)
def test_one_file_is_taken_unless_a_taller_picture_comes_apart(formats, chosen):
    def described(name: str) -> dict[str, object]:
        if name == "?":
            return {"id": name}
        codecs = {"a": ("none", "aac"), "v": ("h264", "none"), "w": ("h264", "aac")}[name[0]]
        return {"id": name, "vcodec": codecs[0], "acodec": codecs[1], "height": int(name[1:] or 0)}

    assert [one["id"] for one in _choose({"formats": [described(name) for name in formats]})] == chosen


def test_two_playlists_with_one_base_name_do_not_collide(server, tmp_path, hls):
    paths = {YTDLP.fetch(add_hls(server, hls, folder), tmp_path).path for folder in ("/a", "/b")}
    assert len(paths) == 2


def test_media_behind_an_address_that_looks_like_a_page_arrive_unchanged(server, tmp_path, hls):
    url = server.add("/watch", File(hls["v0.ts"], type="video/mp2t", cuts=[0, 2_000]))
    assert fetch(url + "?v=1", tmp_path).path.read_bytes() == hls["v0.ts"]


def test_a_page_with_one_video_gives_it(server, tmp_path, hls):
    server.add("/v0.ts", File(hls["v0.ts"], type="video/mp2t"))
    page = b"<html><title>My talk: 1/2</title><video src='/v0.ts'></video>"
    got = fetch(server.add("/page", File(page, type="text/html")), tmp_path)
    assert got.path.read_bytes() == hls["v0.ts"]
    assert got.title.startswith("My talk: 1_2")


def test_a_page_with_several_videos_is_refused(server, tmp_path, hls):
    server.add("/v0.ts", hls["v0.ts"])
    server.add("/v1.ts", hls["v1.ts"])
    page = b"<html><title>x</title><video src='/v0.ts'></video><video src='/v1.ts'></video>"
    with pytest.raises(DownloadFailed, match="several videos"):
        fetch(server.add("/page", File(page, type="text/html")), tmp_path)
    assert left(tmp_path) == []


def test_a_page_without_video_says_so_without_decoration(server, tmp_path):
    with pytest.raises(DownloadFailed) as caught:
        fetch(server.add("/page", File(b"<html><p>nothing", type="text/html")), tmp_path)
    assert "Unsupported URL" in str(caught.value)
    assert not any(mark in str(caught.value) for mark in ("ERROR", "\x1b", "report this issue"))


def test_a_live_stream_is_refused_instead_of_followed(server, tmp_path, hls):
    live = hls["v.m3u8"].replace(b"#EXT-X-ENDLIST", b"").replace(b"#EXT-X-PLAYLIST-TYPE:VOD", b"")
    with pytest.raises(DownloadFailed, match="live"):
        YTDLP.fetch(add_hls(server, {**hls, "v.m3u8": live}), tmp_path)


def test_a_given_up_item_stops_within_a_download(server, tmp_path, hls):
    with pytest.raises(ItemCancelled):
        given_up(YTDLP.fetch, add_hls(server, hls), tmp_path)


@pytest.mark.parametrize("folder", ["50% off", "%(title)s", "a b"])
def test_any_folder_name_will_do(server, tmp_path, hls, folder):
    place = tmp_path / folder
    place.mkdir()
    assert YTDLP.fetch(add_hls(server, hls), place).path.parent == place


def test_a_password_never_reaches_a_message_or_the_log(server, tmp_path, caplog):
    caplog.set_level(logging.DEBUG, logger="video")
    server.add("/page", File(b"<html>", type="text/html"))
    for place in (f"{server.host}/none", f"{server.host}/page", "127.0.0.1:1/v"):
        with pytest.raises(DownloadFailed) as caught:
            YTDLP.fetch(f"http://me:hunter2@{place}?token=s3cret.two", tmp_path)
        said = str(caught.value) + repr(caught.value) + caplog.text
        assert "hunter2" not in said
        assert "s3cret" not in said


def test_errors_cross_a_process_border_with_their_status(server, tmp_path):
    with pytest.raises(DownloadFailed) as caught:
        YTDLP.fetch(f"http://{server.host}/none", tmp_path)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.status) == (str(caught.value), 404)


def test_a_folder_that_cannot_be_written_is_an_output_error(server, tmp_path, hls):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError):
        YTDLP.fetch(add_hls(server, hls), tmp_path / "file")


def test_a_write_that_fails_is_an_output_error(server, tmp_path, hls):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, hard))
    try:
        with pytest.raises(OutputError, match="cannot be written"):
            YTDLP.fetch(add_hls(server, hls), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("url", ["http://", "http://[x/v", "http://127.0.0.1/\udcff", "ftp://h/v"])
def test_an_invalid_address_is_an_error_of_ours(tmp_path, url):
    with pytest.raises(DownloadFailed):
        YTDLP.fetch(url, tmp_path)
