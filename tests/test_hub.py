"""The hub, played by a stand-in on loopback: what it has arrives whole, and whatever else it does is said at once."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from stand_in_hub import FAILURES, git_hash
from tiny import SHAPE, llama

from labkit import hub as labkit_hub
from labkit.case import Case
from labkit.errors import ModelNotAvailable
from labkit.hub import transfers
from labkit.models import check_available, find
from labkit.models.build import build_base, tokenizer_of
from labkit.train.pretrain import train_tokenizer

ID = "acme/tiny-llama"
LIMIT_SECONDS = 5.0
SAYS = {
    "404": "has no such model (HTTP 404)",
    "401": "does not give it without a log-in, or does not have it (HTTP 401): accept the licence on",
    "403": "refuses access (HTTP 403): accept the licence on",
    "gated": "it is gated (HTTP 403): accept the licence on",
    "token": "refuses the token that is set (HTTP 401): renew it with",
    "429": "asked too often (HTTP 429)",
    "503": "is failing (HTTP 503); try later",
    "html": "does not answer as a hub does",
    "json": "does not answer as a hub does",
    "reset": "has broken off the connection",
    "silent": "does not answer",
    "redirects": "sends from one address to the next without end",
    "file-403": "refuses access (HTTP 403): accept the licence on",
    "file-503": "is failing (HTTP 503); try later",
    "file-reset": "of model.safetensors came 0 B of",
    "file-silent": "of model.safetensors came 0 B of",
    "file-stalls": "does not answer in time; files that came whole are kept, so try again",
    "file-half": "has broken off the connection, or does not speak HTTP; files that came whole are kept, so try again",
    "file-other": "what came as model.safetensors is not the file that the hub lists",
    "file-html": "what came as model.safetensors is not the file that the hub lists",
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A tiny model and a tokenizer, as this project saves them."""
    folder = tmp_path_factory.mktemp("saved")
    llama().save_pretrained(folder)
    train_tokenizer(("# add 3 and 8\n3 + 8",), 300).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sharded(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    llama().save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


def refused(call, *arguments) -> str:
    """The sentence with which a call is refused in time."""
    started = time.monotonic()
    with pytest.raises(ModelNotAvailable) as caught:
        call(*arguments)
    assert time.monotonic() - started < LIMIT_SECONDS
    sentence = str(caught.value)
    assert "\n" not in sentence and sentence.endswith(".") and len(sentence) < 700
    assert caught.value.__cause__ is None and caught.value.__context__ is None, "no traceback of a library"
    return sentence


def test_every_failure_has_its_words():
    assert SAYS.keys() == set(FAILURES)


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failing_hub_costs_under_5_seconds_and_one_sentence(hub, saved, failure):
    hub.add("model", ID, saved, failure)
    sentence = refused(find, ID)
    assert f"'{ID}'" in sentence and SAYS[failure] in sentence
    assert "without the hub these work: tiny, smollm2-135m" in sentence and "a local folder" in sentence
    if "licence" in sentence:
        assert f"{hub.url}/{ID}" in sentence and "`hf auth login` or HF_TOKEN" in sentence


@pytest.mark.parametrize("failure", [name for name in FAILURES if not name.startswith("file-")])
def test_a_failing_hub_is_found_out_before_anything_is_downloaded(hub, saved, failure):
    hub.add("model", ID, saved, failure)
    assert SAYS[failure] in refused(check_available, ID)
    assert hub.sent == []


def test_a_hub_that_is_not_there(monkeypatch, hub):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        assert "refuses the connection" in refused(find, ID)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://no-such-host.invalid")
    assert "its name is unknown here" in refused(find, ID)


def test_a_name_server_that_never_answers(monkeypatch, hub):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://no-such-host.invalid")
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: hub.over.wait())
    assert "does not answer in time" in refused(check_available, ID)


def test_a_server_that_accepts_and_says_nothing(monkeypatch, hub):
    """Not even an HTTP server: the connection waits in the queue of the system."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{mute.getsockname()[1]}")
        assert "does not answer" in refused(find, ID)


def test_offline_mode_asks_nobody(monkeypatch, hub, saved):
    hub.add("model", ID, saved)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refused(find, ID)
    assert hub.asked == []


def test_a_model_arrives_once_and_is_then_used_without_the_hub(hub, saved, capsys):
    hub.add("model", ID, saved)
    source = find(ID)
    assert source.name == ID and source.trained and source.commit == hub.repositories["model", ID].commit
    assert sorted(path.name for path in source.folder.iterdir()) == sorted(hub.sent) == sorted(
        ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    )  # fmt: skip
    hub.asked.clear()
    assert find(ID) == source
    check_available(ID)
    case = Case(model=ID, method="full").on("cpu")
    torch.testing.assert_close(build_base(case, "cpu").state_dict(), llama().state_dict())
    assert tokenizer_of(case).decode(tokenizer_of(case)("3 + 8")["input_ids"]) == "3 + 8"
    assert hub.asked == []
    assert capsys.readouterr() == ("", "")


def test_huggingface_hub_finds_in_the_cache_what_came(hub, saved):
    """The cache is its own: its offline look-up finds the files, and knows which of the hub's are not there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import IncompleteSnapshotError

    hub.add("model", ID, {**{path.name: path.read_bytes() for path in saved.iterdir()}, "README.md": b"A model."})
    source = find(ID)
    wanted = {"cache_dir": source.folder.parents[2], "local_files_only": True}
    assert Path(snapshot_download(ID, allow_patterns=["*.json", "*.safetensors"], **wanted)) == source.folder
    with pytest.raises(IncompleteSnapshotError, match="README.md"):
        snapshot_download(ID, **wanted)


def test_what_huggingface_hub_cached_is_used(hub, saved, monkeypatch):
    from huggingface_hub import snapshot_download

    hub.add("model", ID, saved)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    folder = snapshot_download(ID, endpoint=hub.url, cache_dir=labkit_hub.repository("model", ID).folder.parent)
    hub.asked.clear()
    assert find(ID).folder == Path(folder)
    assert hub.asked == []


def test_a_sharded_model_arrives_whole(hub, sharded):
    hub.add("model", ID, sharded)
    case = Case(model=ID, method="full").on("cpu")
    torch.testing.assert_close(build_base(case, "cpu").state_dict(), llama().state_dict())


def test_only_data_of_the_model_is_downloaded(hub, saved):
    files = {path.name: path.read_bytes() for path in saved.iterdir()}
    more = ("pytorch_model.bin", "modeling.py", "consolidated.safetensors", "onnx/model.onnx", "../escaped.json")
    hub.add("model", ID, files | dict.fromkeys(more, b"x"))
    find(ID)
    assert set(hub.sent) == files.keys()


def test_a_revision_can_be_asked_for(hub, saved):
    commit = hub.add("model", ID, saved).commit
    assert find(f"{ID}@{commit}").commit == commit
    assert "has no revision 'v2' of it" in refused(find, f"{ID}@v2")


def test_the_config_alone_is_enough_to_know_the_shape(hub, saved):
    hub.add("model", ID, saved)
    assert find(ID, weights=False).config["hidden_size"] == SHAPE["hidden_size"]
    assert hub.sent == ["config.json"]


def test_checking_downloads_the_config_alone(hub, saved):
    hub.add("model", ID, saved)
    check_available(ID)
    check_available(ID)
    assert hub.sent == ["config.json"]


@pytest.mark.parametrize("lost", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_partial_cache_is_completed_or_named(hub, saved, lost, monkeypatch):
    hub.add("model", ID, saved)
    whole = find(ID)
    (whole.folder / lost).resolve().unlink()
    (whole.folder / lost).unlink()
    hub.sent.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    if lost == "config.json":
        assert "HF_HUB_OFFLINE" in refused(find, ID)
    else:
        sentence = refused(find, ID)
        assert f"the cache holds only a part of it (its {lost} is missing), and HF_HUB_OFFLINE is set" in sentence
        assert find(ID, weights=False).config == whole.config
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert find(ID) == whole and hub.sent == [lost]


def test_a_missing_shard_is_noticed(hub, sharded):
    hub.add("model", ID, sharded)
    folder, shard = find(ID).folder, sorted(path.name for path in sharded.glob("*.safetensors"))[1]
    (folder / shard).resolve().unlink()
    hub.sent.clear()
    find(ID)
    assert hub.sent == [shard]


@pytest.mark.parametrize("failure", ["file-half", "file-stalls"])
def test_what_broke_off_leaves_nothing_behind_and_what_came_whole_is_kept(hub, saved, failure):
    repository = hub.add("model", ID, saved, failure)
    assert "of model.safetensors came 1" in refused(find, ID)
    blobs = labkit_hub.repository("model", ID).folder / "blobs"
    assert len(list(blobs.iterdir())) == len(set(hub.sent)) > 0
    repository.failure = ""
    kept = set(hub.sent)
    hub.sent.clear()
    find(ID)
    assert set(hub.sent) == {path.name for path in saved.iterdir()} - kept


def test_leftovers_are_removed_unless_somebody_is_at_work_on_them(hub, saved):
    from filelock import FileLock

    hub.add("model", ID, saved)
    folder = labkit_hub.repository("model", ID).folder
    (folder / "blobs").mkdir(parents=True)
    left, busy = (folder / "blobs" / f"{letter * 64}.1234abcd.incomplete" for letter in "ab")
    locks = folder.parent / ".locks" / folder.name
    locks.mkdir(parents=True)
    left.touch()
    busy.touch()
    with FileLock(locks / f"{'b' * 64}.lock"):
        find(ID)
    assert busy.exists() and not left.exists()


def test_a_break_in_a_download_that_was_healthy_is_mended(hub, saved, monkeypatch):
    monkeypatch.setattr(transfers, "HEALTHY_SECONDS", 0.0)
    repository = hub.add("model", ID, saved, "file-half")
    threading.Timer(1.5, lambda: setattr(repository, "failure", "")).start()
    build_base(Case(model=ID, method="full").on("cpu"), "cpu")
    assert max(hub.ranges) > 0


@pytest.mark.slow
def test_a_slow_but_steady_download_is_not_cut(hub, saved):
    """It takes several times as long as a silent hub is waited for, and stays within what the library has in hand."""
    hub.add("model", ID, saved, "file-slow")
    started = time.monotonic()
    find(ID)
    assert time.monotonic() - started > 3 * transfers.STALL_SECONDS


def test_a_token_is_sent_to_the_hub_and_to_nobody_else(hub, saved, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_made_up")
    hub.add("model", ID, saved)
    find(ID)
    port = int(hub.url.rpartition(":")[2])
    assert {token for asked, token in hub.tokens if asked == port} == {"Bearer hf_made_up"}
    assert {token for asked, token in hub.tokens if asked != port} == {None}


def test_where_no_links_can_be_made_the_file_itself_is_put_in_place(hub, saved, monkeypatch):
    """As on Windows without the right to make links."""

    monkeypatch.setenv("HF_HUB_DISABLE_SYMLINKS", "1")
    hub.add("model", ID, saved)
    folder = find(ID).folder
    assert not any(path.is_symlink() for path in folder.iterdir())
    hub.asked.clear()
    assert find(ID).folder == folder and hub.asked == []


def test_requests_for_one_model_at_a_time_download_it_once(hub, saved):
    hub.add("model", ID, saved)
    threads = [threading.Thread(target=find, args=(ID,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(hub.sent) == sorted(path.name for path in saved.iterdir())


def test_a_disk_that_is_too_small_is_said_before(hub, saved, monkeypatch):
    hub.add("model", ID, saved)
    monkeypatch.setattr(transfers.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10}))
    assert "and set HF_HOME" not in (sentence := refused(find, ID)) and "10 B free: make room" in sentence


def test_a_model_that_could_run_code_is_refused_before_its_weights_come(hub, saved):
    files = {path.name: path.read_bytes() for path in saved.iterdir()}
    code = json.loads(files["config.json"]) | {"auto_map": {"AutoModelForCausalLM": "modeling.Model"}}
    hub.add("model", ID, files | {"config.json": json.dumps(code).encode()})
    assert "Python code that comes with it (auto_map)" in refused(check_available, ID)
    assert hub.sent == ["config.json"]
    hub.add("model", "acme/pickled", {"config.json": files["config.json"], "pytorch_model.bin": b"x"})
    assert "its weights are pickled (pytorch_model.bin)" in refused(check_available, "acme/pickled")
    hub.add("model", "acme/adapter", {"adapter_config.json": b"{}", "adapter_model.safetensors": b"x"})
    assert "has no config.json" in refused(check_available, "acme/adapter")


# ------------------------------------------------------------------------------------------ names and folders


@pytest.mark.parametrize(
    ("name", "meant"), [("tinyy", "tiny"), ("llama-3.1-8", "llama-3.1-8b"), ("Mistral-7B", "mistral-7b")]
)
def test_a_slip_is_answered_with_the_name_and_without_the_hub(hub, name, meant):
    assert f"did you mean '{meant}'?" in refused(find, name)
    assert hub.asked == []


def test_a_bare_name_may_be_on_the_hub(hub, saved):
    hub.add("model", "gpt2", saved)
    assert find("gpt2").commit


@pytest.mark.parametrize(
    "name", ["./x", "../x/y", "/no/such", "~/nothing-here", "C:\\models", "a b", "x" * 5000, "é/è"]
)
def test_what_looks_like_a_path_is_not_asked_for(hub, name):
    assert "it is neither a path that is there, nor a hub id" in refused(find, name)
    assert hub.asked == []


def test_cached_ids_are_named_among_what_works(hub, saved, monkeypatch):
    hub.add("model", ID, saved)
    find(ID)
    assert f"and from the cache {ID}" in refused(find, "acme/other")


def test_a_folder_with_remote_code_is_refused_even_if_its_type_is_known(tmp_path):
    llama().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "modeling.Model"}}))
    assert "auto_map" in refused(find, str(tmp_path))


def test_an_adapter_is_no_model(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "holds an adapter" in refused(find, str(tmp_path))


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ("{", "is not valid JSON"),
        ('{"weight_map": {"a": "../model.safetensors"}}', "names no .safetensors files beside it"),
        ('{"weight_map": {}}', "names no .safetensors files"),
        ('{"weight_map": {"a": "model-00001-of-00001.safetensors"}}', "model-00001-of-00001.safetensors is missing"),
    ],
)
def test_a_broken_index_is_refused(tmp_path, index, words):
    llama().config.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(index)
    assert words in refused(check_available, str(tmp_path))


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: data[:4], lambda data: data + b"x", lambda _: b""]
)
def test_weights_that_are_not_whole_are_refused_before_anything_is_loaded(tmp_path, damage):
    llama().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(damage(weights.read_bytes()))
    assert "model.safetensors is no whole .safetensors file" in refused(check_available, str(tmp_path))


@pytest.mark.parametrize("folder", ["saved", "sharded"])
def test_a_folder_of_our_own_save_gives_the_same_logits(folder, request):
    path = request.getfixturevalue(folder)
    loaded = build_base(Case(model=str(path), method="full").on("cpu"), "cpu").eval()
    tokens = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens).logits, llama().eval()(tokens).logits)


def test_git_names_a_blob_as_the_stand_in_does(tmp_path):
    (tmp_path / "file").write_bytes(b"some content\n")
    found = subprocess.run(["git", "hash-object", tmp_path / "file"], capture_output=True, text=True)
    if found.returncode:
        pytest.skip("git is not there")
    assert found.stdout.strip() == git_hash(b"some content\n")


def found_apart(tmp_path, **environment) -> subprocess.CompletedProcess:
    """`find(ID)` as a reader does it: in a fresh process, told by environment variables alone."""
    code = f"from labkit.models import find; print(find({ID!r}).folder)"
    everything = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"} | environment
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=everything)


def test_the_environment_chooses_hub_and_cache(hub, saved, tmp_path):
    hub.add("model", ID, saved)
    done = found_apart(tmp_path, HF_ENDPOINT=hub.url)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(tmp_path / "home") and done.stderr == ""


def test_the_environment_chooses_a_proxy(hub, saved, tmp_path):
    hub.add("model", ID, saved)
    proxied = found_apart(tmp_path, HF_ENDPOINT="http://hub.invalid", HTTP_PROXY=hub.url, NO_PROXY="")
    assert proxied.returncode == 0, proxied.stderr
    failing = found_apart(tmp_path / "other", HF_ENDPOINT="http://hub.invalid", HTTP_PROXY="http://127.0.0.1:9")
    assert "the hub at http://hub.invalid (through HTTP_PROXY) refuses the connection" in failing.stderr
